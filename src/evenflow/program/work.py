"""What a schedule is made for: stages on ranks, microbatches, and what each compute action costs in time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import inf

from evenflow.cost import StageCost, StageMemory
from evenflow.errors import InputError
from evenflow.program.placement import stages_of

_MOST_PASSES = 2**20  # a program names each of them in some ten actions: two gigabytes, and minutes to simulate


def check_size(stages: int, microbatches: int) -> None:
    """Refuse a program that would eat the machine's memory before it says anything.

    Raises:
        InputError: there are too many microbatches for so many stages.
    """
    if stages * microbatches > _MOST_PASSES:
        raise InputError(
            f"{microbatches} microbatches through {stages} stages are more than a program of ours holds; "
            f"{_MOST_PASSES // stages} or fewer would do"
        )


@dataclass(frozen=True)  # without slots: `cached_property` keeps what every pass over a schedule asks for
class Work:
    """One step's compute.

    Attributes:
        stage_rank: the rank that holds each stage.
        microbatches: microbatches of the step.
        costs: seconds of each stage.
        transfer_s: seconds from each stage to the one after it; one entry less than stages.
        saved: what each stage keeps from a forward to its backward, in any unit.
        pending: what is left of that between I and W.
        cap: how much of it each rank may hold.
        back_s: seconds to each stage from the one after it, as `transfer_s`; by default the same.

    Raises:
        InputError: there are too many microbatches for so many stages.
    """

    stage_rank: tuple[int, ...]
    microbatches: int
    costs: tuple[StageCost, ...]
    transfer_s: tuple[float, ...]
    saved: tuple[float, ...]
    pending: tuple[float, ...]
    cap: tuple[float, ...]
    back_s: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_size(self.stages, self.microbatches)

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return len(self.stage_rank)

    @cached_property
    def ranks(self) -> int:
        """How many ranks there are."""
        return max(self.stage_rank) + 1

    @cached_property
    def rank_stages(self) -> tuple[tuple[int, ...], ...]:
        """The stages of each rank."""
        return tuple(stages_of(self.stage_rank, rank) for rank in range(self.ranks))

    @cached_property
    def lag(self) -> tuple[float, ...]:
        """Seconds from each stage to the one after it: a transfer, or nothing where both are on one rank."""
        return self._between_ranks(self.transfer_s)

    @cached_property
    def back_lag(self) -> tuple[float, ...]:
        """Seconds to each stage from the one after it: a transfer, or nothing where both are on one rank."""
        return self._between_ranks(self.transfer_s if self.back_s is None else self.back_s)

    def _between_ranks(self, transfers: tuple[float, ...]) -> tuple[float, ...]:
        pairs = zip(pairwise(self.stage_rank), transfers, strict=True)
        return tuple(0.0 if one == other else seconds for (one, other), seconds in pairs)

    @cached_property
    def seconds(self) -> tuple[tuple[float, ...], ...]:
        """Seconds of F, B, I and W, in the order of their codes; each an entry for every stage."""
        return (
            tuple(cost.forward_s for cost in self.costs),
            tuple(cost.backward_s for cost in self.costs),
            tuple(cost.input_s for cost in self.costs),
            tuple(cost.weight_s for cost in self.costs),
        )


def even_work(stage_rank: Sequence[int], microbatches: int) -> Work:
    """Work whose F, I and W take a second each and whose transfers take none: what a picture of a schedule shows.

    A rank keeps one unit a microbatch, its stages equal parts of it, and half of that between I and W.
    """
    ranks = max(stage_rank) + 1
    share = tuple(1.0 / stage_rank.count(rank) for rank in stage_rank)
    return Work(
        stage_rank=tuple(stage_rank),
        microbatches=microbatches,
        costs=(StageCost(1.0, 2.0, 1.0, 1.0),) * len(stage_rank),
        transfer_s=(0.0,) * (len(stage_rank) - 1),
        saved=share,
        pending=tuple(own / 2 for own in share),
        cap=(inf,) * ranks,
    )


def make_work(
    stage_rank: Sequence[int],
    microbatches: int,
    costs: Sequence[StageCost],
    memory: Sequence[StageMemory],
    transfer_s: Sequence[float],
    cap_bytes: Sequence[float] | None = None,
    back_s: Sequence[float] | None = None,
) -> Work:
    """Work in seconds and bytes; parameters, gradients and optimizer state are taken off the caps."""
    ranks = max(stage_rank) + 1
    state = [0.0] * ranks
    for rank, own in zip(stage_rank, memory, strict=True):
        state[rank] += own.state_bytes
    caps = cap_bytes if cap_bytes is not None else [inf] * ranks
    return Work(
        stage_rank=tuple(stage_rank),
        microbatches=microbatches,
        costs=tuple(costs),
        transfer_s=tuple(transfer_s),
        saved=tuple(float(own.saved_bytes + own.input_bytes) for own in memory),
        pending=tuple(float(own.pending_bytes + own.input_bytes + own.output_bytes) for own in memory),
        cap=tuple(cap - held for cap, held in zip(caps, state, strict=True)),
        back_s=None if back_s is None else tuple(back_s),
    )
