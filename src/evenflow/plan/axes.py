"""Degrees of parallelism, and which process of a job has which place on them.

Processes are numbered tp fastest, then dp, and pp slowest:

    pp 2, dp 2, tp 2    process  0 1 2 3  4 5 6 7
                        tp       0 1 0 1  0 1 0 1
                        dp       0 0 1 1  0 0 1 1
                        pp       0 0 0 0  1 1 1 1

Tensor parallelism talks in every layer, so its processes are neighbours, on one host wherever it is large enough; data
parallelism sends all gradients once a step; a pipeline sends hidden states alone, which a network between hosts
carries best. It is the order of Narayanan et al. 2021 (arXiv:2104.04473, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from evenflow.errors import InputError

Zero = Literal[
    0, 1
]  # what replicas share out: nothing, or the optimizer's state (Rajbhandari et al., arXiv:1910.02054)
ZEROS: tuple[Zero, ...] = get_args(Zero)


@dataclass(frozen=True, slots=True)
class Coordinates:
    """A process's place on each axis; `pp` is the rank of plans and programs."""

    pp: int
    dp: int = 0
    tp: int = 0


@dataclass(frozen=True, slots=True)
class Axes:
    """Degrees of parallelism: pipeline, tensor, data, context and expert."""

    pp: int = 1
    tp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1

    @property
    def processes(self) -> int:
        """How many processes a job has; experts are shared out among those that there are anyway."""
        return self.pp * self.dp * self.cp * self.tp

    @property
    def copies(self) -> int:
        """Over how many processes the gradients of a weight are added."""
        return self.dp * self.cp

    def coordinates(self, process: int) -> Coordinates:
        """The place of a process."""
        rest, tp = divmod(process, self.tp)
        pp, dp = divmod(rest, self.dp)
        return Coordinates(pp, dp, tp)

    def process(self, at: Coordinates) -> int:
        """The process at a place."""
        return (at.pp * self.dp + at.dp) * self.tp + at.tp

    def pipeline(self, at: Coordinates) -> tuple[int, ...]:
        """The processes of one pipeline, by rank: those with the same place on dp and tp."""
        return tuple(self.process(Coordinates(pp, at.dp, at.tp)) for pp in range(self.pp))

    def replicas(self, at: Coordinates) -> tuple[int, ...]:
        """The processes that hold the same weights, by their place on dp."""
        return tuple(self.process(Coordinates(at.pp, dp, at.tp)) for dp in range(self.dp))

    def shards(self, at: Coordinates) -> tuple[int, ...]:
        """The processes that share out the tensors of one stage, by their place on tp."""
        return tuple(self.process(Coordinates(at.pp, at.dp, tp)) for tp in range(self.tp))


def choose_axes(
    devices: int,
    pp: int | None = None,
    tp: int | None = None,
    dp: int | None = None,
    *,
    cp: int | None = None,
    ep: int | None = None,
    exactly: bool = False,
) -> Axes:
    """The axes over so many devices: those that are asked for, and a pipeline over what they leave.

    Args:
        devices: how many there are.
        pp: pipeline ranks, where they are asked for; with them fewer devices than there are may be used.
        tp: tensor-parallel processes of a stage.
        dp: replicas.
        cp: processes that share every sequence.
        ep: processes that share the experts, among those that dp and cp make.
        exactly: whether all devices have to be used.

    Raises:
        InputError: the devices cannot be shared out so.
    """
    asked = {"--pp": pp, "--tp": tp, "--dp": dp, "--cp": cp}
    said = " ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
    others = (tp or 1) * (dp or 1) * (cp or 1)
    if pp is None and devices % others:
        raise InputError(
            f"{said} does not divide {devices} processes; {others} processes, or a multiple of that, would do"
        )
    axes = Axes(pp=pp or devices // others, tp=tp or 1, dp=dp or 1, cp=cp or 1, ep=ep or 1)
    if axes.copies % axes.ep:
        would = " or ".join(str(own) for own in range(1, axes.copies + 1) if axes.copies % own == 0)
        raise InputError(
            f"--ep {axes.ep} shares out experts over dp x cp, which is {axes.copies}; {would} would do, or more --dp"
        )
    if axes.processes > devices or (exactly and axes.processes != devices):
        needed = " x ".join(str(value) for value in asked.values() if value is not None)
        needed = f"{needed} = {axes.processes}" if " x " in needed else needed
        raise InputError(f"{said} needs {needed} processes, and there are {devices}; {axes.processes} would do")
    return axes


def check_zero(value: int) -> Zero:
    """A number of the user's as the stage of ZeRO that it is.

    Raises:
        InputError: it is not known.
    """
    for known in ZEROS:
        if value == known:
            return known
    raise InputError(f"--zero {value} is not known; {' or '.join(map(str, ZEROS))} would do")
