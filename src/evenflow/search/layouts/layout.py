"""The space of a search over layouts: every legal way to lay a preset out over a cluster's devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from evenflow.cost.preset import Shape
from evenflow.errors import InputError
from evenflow.plan import Axes, Zero
from evenflow.program import SCHEDULES, place, tp_misfit
from evenflow.spec.architecture import Architecture
from evenflow.spec.batch import MOST_MICROBATCHES, divisors
from evenflow.spec.trainers import TRAINERS, Trainer

_MOST_PASSES = 2**20  # stages x microbatches: as `program.check_size`
_DRAWN = 512  # of those, for a schedule whose order is drawn up action by action, unless it is fixed
_FEWER = 4096  # device numbers below those that there are, among which one is looked for that would do
_LEAST_PIECE = 256  # tokens of a sequence's piece, below which sharing sequences out is not proposed


@dataclass(frozen=True, slots=True)
class Layout:
    """One point of the space.

    Attributes:
        pp, tp, dp, cp, ep: degrees of parallelism.
        stages_per_rank: stages of each pipeline rank.
        schedule: its name.
        micro_batch_size: sequences of a microbatch.
        zero: what replicas share out.
        microbatches: of a replica's step.
    """

    pp: int
    tp: int
    dp: int
    cp: int
    ep: int
    stages_per_rank: int
    schedule: str
    micro_batch_size: int
    zero: int
    microbatches: int

    @property
    def devices(self) -> int:
        """How many it uses."""
        return self.pp * self.tp * self.dp * self.cp

    @property
    def rank_devices(self) -> int:
        """How many a pipeline rank has."""
        return self.tp * self.dp * self.cp

    @property
    def stages(self) -> int:
        """Of the whole pipeline."""
        return self.pp * self.stages_per_rank

    @property
    def shape(self) -> Shape:
        """What the cost of a microbatch hangs on."""
        return Shape(self.tp, self.cp, self.ep, self.micro_batch_size)

    @property
    def axes(self) -> Axes:
        """As a plan has them."""
        return Axes(self.pp, self.tp, self.dp, self.cp, self.ep)

    @property
    def stage_rank(self) -> tuple[int, ...]:
        """The rank of each stage."""
        return stage_ranks(self.schedule, self.pp, self.stages_per_rank)

    def text(self) -> str:
        """In words, axes of one left out."""
        axes = [f"{name} {getattr(self, name)}" for name in ("pp", "tp", "cp", "ep", "dp") if getattr(self, name) > 1]
        each = f" x {self.stages_per_rank} stages" if self.stages_per_rank > 1 else ""
        zero = ", ZeRO 1" if self.zero else ""
        return f"{' '.join(axes) or 'one device'}, {self.schedule}{each}, microbatches of {self.micro_batch_size}{zero}"


def stage_ranks(schedule: str, pp: int, each: int) -> tuple[int, ...]:
    """Where a schedule has its stages: one a rank, back and forth, or round and round."""
    return place("v" if schedule == "zb-v" else "loop", pp, pp * each)


@dataclass(frozen=True, slots=True)
class Pins:
    """What the user fixed; None leaves an axis free."""

    pp: int | None = None
    tp: int | None = None
    dp: int | None = None
    cp: int | None = None
    ep: int | None = None
    stages_per_rank: int | None = None
    schedule: str | None = None
    micro_batch_size: int | None = None
    zero: Zero | None = None

    def given(self) -> dict[str, int | str]:
        """Those that are fixed."""
        return {own.name: value for own in fields(self) if (value := getattr(self, own.name)) is not None}


FREE = Pins()


@dataclass(frozen=True, slots=True)
class Space:
    """What layouts are drawn from.

    Attributes:
        architecture: what is trained.
        devices: how many there are, all of which a layout uses.
        node_devices: devices of a node: the most that tp may be, unless it is fixed.
        global_batch_size: sequences of a step.
        seq_length: tokens of a sequence.
        trainer: who runs it.
        pins: what is fixed.
    """

    architecture: Architecture
    devices: int
    node_devices: int
    global_batch_size: int
    seq_length: int
    trainer: Trainer
    pins: Pins = FREE

    @property
    def layers(self) -> int:
        """Embedding, blocks and head."""
        return self.architecture.layers + 2

    def check(self) -> None:
        """Refuse fixed values that no layout can have.

        Raises:
            InputError: which one, and what would do.
        """
        pins, it, trainer = self.pins, self.architecture, self.trainer
        for name, most in (("pp", self.layers), ("dp", self.global_batch_size)):
            value = getattr(pins, name)
            if value is not None and value > most:
                what = "layers" if name == "pp" else "sequences in a step"
                raise InputError(f"--{name} {value} is more than the {most} {what} there are; {most} would be the most")
        if pins.tp is not None and (reason := tp_mistake(it, pins.tp)):
            raise InputError(reason)
        for name, has in (("cp", trainer.has_cp), ("ep", trainer.has_ep)):
            value = getattr(pins, name)
            if value is not None and value > 1 and not has:
                able = ", ".join(own.name for own in TRAINERS.values() if getattr(own, f"has_{name}"))
                raise InputError(f"--{name} {value}: {trainer.name} has no {name}; 1, or --for {able}, would do")
        if pins.ep is not None and pins.ep > 1 and (it.experts is None or it.experts.count % pins.ep):
            have = f"its {it.experts.count} experts do not divide by it" if it.experts else "it has no experts"
            raise InputError(f"--ep {pins.ep}: {have}; 1 would do")
        if pins.cp is not None and self.seq_length % (2 * pins.cp) and pins.cp > 1:
            raise InputError(f"--cp {pins.cp} does not cut {self.seq_length} tokens into equal pairs of pieces")
        if pins.schedule is not None and pins.schedule not in SCHEDULES:
            raise InputError(f"schedule {pins.schedule!r} is not known; {', '.join([*SCHEDULES, 'auto'])} are")
        if pins.schedule is not None and trainer.name != "evenflow" and pins.schedule not in trainer.schedules:
            raise InputError(f"{trainer.name} has no {pins.schedule}; {', '.join(trainer.schedules)} would do")
        given = [value for name in ("pp", "tp", "dp", "cp") if (value := getattr(pins, name))]
        product = 1
        for value in given:
            product *= value
        if product > self.devices:
            said = " ".join(
                f"--{name} {getattr(pins, name)}" for name in ("pp", "tp", "dp", "cp") if getattr(pins, name)
            )
            raise InputError(f"{said} needs {product} devices, and there are {self.devices}")
        if pins.dp is not None and self.global_batch_size % pins.dp:
            raise InputError(
                f"--dp {pins.dp} does not divide a global batch of {self.global_batch_size}; "
                f"{_near(self.global_batch_size, pins.dp)} would do"
            )
        own = self.global_batch_size // (pins.dp or 1)
        if pins.micro_batch_size is not None and own % pins.micro_batch_size:
            raise InputError(
                f"--micro-batch-size {pins.micro_batch_size} does not divide the {own} sequences of a replica; "
                f"{_near(own, pins.micro_batch_size)} would do"
            )

    def layouts(self) -> list[Layout]:
        """Every legal layout over all devices.

        Raises:
            InputError: a fixed value that no layout can have, or none is legal.
        """
        self.check()
        found = [layout for axes in self._axes(self.devices) for layout in self._of(*axes)]
        if not found:
            raise InputError(self._none())
        return found

    def _axes(self, devices: int) -> Iterator[tuple[int, int, int, int]]:
        """pp, tp, cp and dp that use all devices."""
        pins, it = self.pins, self.architecture
        for tp in [pins.tp] if pins.tp else divisors(devices):
            if devices % tp or tp_mistake(it, tp) or (pins.tp is None and tp > self.node_devices):
                continue
            for cp in self._cps(devices // tp):
                for pp in [pins.pp] if pins.pp else divisors(devices // (tp * cp)):
                    rest = devices // (tp * cp)
                    if rest % pp or pp > self.layers:
                        continue
                    dp = rest // pp
                    if self.global_batch_size % dp == 0 and pins.dp in (None, dp):
                        yield pp, tp, cp, dp

    def _cps(self, devices: int) -> list[int]:
        if self.pins.cp:
            return [self.pins.cp] if devices % self.pins.cp == 0 else []
        if not self.trainer.has_cp:
            return [1]
        return [
            cp
            for cp in divisors(devices)
            if cp == 1 or (self.seq_length % (2 * cp) == 0 and self.seq_length // cp >= _LEAST_PIECE)
        ]

    def _eps(self, replicas: int) -> list[int]:
        experts = self.architecture.experts
        if self.pins.ep:
            return [self.pins.ep] if replicas % self.pins.ep == 0 else []
        if experts is None or not self.trainer.has_ep:
            return [1]
        return [ep for ep in divisors(experts.count) if replicas % ep == 0]

    def _of(self, pp: int, tp: int, cp: int, dp: int) -> Iterator[Layout]:
        pins, own = self.pins, self.global_batch_size // dp
        zeros = [pins.zero] if pins.zero is not None else ([0, 1] if dp * cp > 1 else [0])
        runs = list(self._runs(pp, tp))
        for ep in self._eps(dp * cp):
            for size in [pins.micro_batch_size] if pins.micro_batch_size else divisors(own):
                if own % size or (count := own // size) > MOST_MICROBATCHES:
                    continue
                for schedule, each in runs:
                    most = _DRAWN if SCHEDULES[schedule].by_costs and pins.schedule is None else _MOST_PASSES
                    if pp * each * count > most:
                        continue
                    if self.trainer.whole_rounds and each > 1 and schedule == "interleaved" and count % pp:
                        continue
                    for zero in zeros:
                        yield Layout(pp, tp, dp, cp, ep, each, schedule, size, zero, count)

    def _runs(self, pp: int, tp: int) -> Iterator[tuple[str, int]]:
        """Schedules that ranks could follow, and with how many stages each."""
        pins = self.pins
        for name in [pins.schedule] if pins.schedule else self.trainer.schedules:
            schedule = SCHEDULES[name]
            if schedule.halves and tp > 1 and not self.trainer.halves_under_tp:
                continue
            if pp == 1 and name not in ("1f1b", pins.schedule):
                continue  # one rank runs everything in turn, whatever the order
            if schedule.exactly:
                counts = [schedule.stages_per_rank]
            elif pins.stages_per_rank:
                counts = [pins.stages_per_rank]
            else:
                counts = list(range(2, self.layers // pp + 1)) if name == "interleaved" else [1]
            for each in counts:
                if pp * each <= self.layers and pins.stages_per_rank in (None, each):
                    yield name, each

    def _none(self) -> str:
        given = self.pins.given()
        said = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items()) or "no axis fixed"
        reason = self._misfit()
        usable = self._usable() if reason is None else None
        would = f"{usable} of them would do" if usable else "fewer fixed axes, or another global batch, would do"
        return (
            f"no layout of {self.architecture.name} uses all {self.devices} devices ({said}; a global batch of "
            f"{self.global_batch_size}); {reason or would}"
        )

    def _usable(self) -> int | None:
        """The most devices, of fewer than there are, over which there is a layout."""
        for devices in range(self.devices - 1, max(self.devices - _FEWER, 0), -1):
            if any(next(self._of(*axes), None) is not None for axes in self._axes(devices)):
                return devices
        return None

    def _misfit(self) -> str | None:
        """Which fixed values do not go together, however many devices there are; None where that is not it."""
        pins = self.pins
        if pins.schedule is not None:
            schedule = SCHEDULES[pins.schedule]
            if schedule.halves and (pins.tp or 1) > 1 and not self.trainer.halves_under_tp:
                return tp_misfit(pins.schedule, pins.tp or 1)
            each, least = pins.stages_per_rank, schedule.stages_per_rank
            if schedule.exactly and each not in (None, least):
                return f"--stages-per-rank {each}: {schedule.title} has {least} on each rank; {least} would do"
        ep, replicas = pins.ep or 1, (pins.dp or 1) * (pins.cp or 1)
        if pins.dp and pins.cp and replicas % ep:
            return f"--ep {ep} shares out experts over dp x cp, which is {replicas}; --dp {ep} would do"
        return None


def tp_mistake(it: Architecture, tp: int) -> str | None:
    """Why tensors cannot be shared out so; None where they can."""
    widths = [("query heads", it.heads), ("key and value heads", it.kv_heads), ("width of a feed-forward part", it.ffn)]
    if it.experts is not None:
        widths.append(("width of an expert", it.experts.ffn))
    for what, width in widths:
        if width % tp:
            return f"--tp {tp} does not divide the {what} of {it.name}, {width}; {_near(width, tp)} would do"
    return None


def _near(number: int, by: int) -> str:
    found = divisors(number)
    below, above = [own for own in found if own < by], [own for own in found if own > by]
    return " or ".join(str(own) for own in [*below[-1:], *above[:1]])
