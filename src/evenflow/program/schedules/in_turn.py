"""The paper's own greedy schedule under a memory cap: on many ranks it stays short where lists of policies drift.

    rank 0 | F0 F1 F2 F3 .  I0 W0 F4 I1 W1 F5 I2 W2 I3 I4 I5 W3 W4 W5
    rank 1 |    F0 F1 F2 I0 F3 I1 W0 F4 I2 W1 F5 I3 I4 I5 W2 W3 W4 W5
    rank 2 |       F0 I0 F1 I1 F2 I2 F3 I3 F4 I4 F5 I5 W0 W1 W2 W3 W4 W5

Made in rounds. In a round every stage, the last one first, runs one forward and one input half; the gradient then
comes from the stage that went just before, and the input from the round before, as a stage keeps a forward or more
ahead of the next one. A weight half fills a gap as long as itself, or makes room for a forward; the rest run at the
end. Some choices are left open (`Ways`), of which all combinations are to be tried
(Qi et al. 2023, arXiv:2401.10241, section 3.1; there one F, I, W and transfer for all, here each stage's own).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import inf

from evenflow.program.times import FORWARD, INPUT, WEIGHT, Coded
from evenflow.program.work import Work

_NEAR = 1e-6  # of a forward and an input half


@dataclass(frozen=True, slots=True)
class Ways:
    """The choices left open.

    Attributes:
        late_start: whether one forward more is run before the first input half where that delays it.
        skip: whether a stage two or more forwards ahead of the next one leaves one out that would not end
            before its next gradient is there.
        overfill: which gaps shorter than a weight half get one: `never`, `worst` where the stage's idle time would
            else become the longest of all, or `behind` where it is not the shortest of all so far.
    """

    late_start: bool
    skip: bool
    overfill: str


def all_ways() -> Iterator[Ways]:
    """Every combination."""
    for late_start, skip, overfill in product((False, True), (False, True), ("never", "worst", "behind")):
        yield Ways(late_start, skip, overfill)


def in_turn(work: Work, ways: Ways) -> Coded | None:
    """Each rank's actions as numbers; None where the caps hold fewer microbatches than there are stages.

    Args:
        work: what is scheduled, with one stage on each rank.
        ways: the choices left open.
    """
    play = _Play(work, ways)
    if min(play.before_first) < 1:
        return None
    play.warm_up()
    for microbatch in range(work.microbatches):
        for stage in reversed(range(work.stages)):
            if not play.visit(stage, microbatch):
                return None
    for stage in range(work.stages):
        play.finish(stage)
    return [order for _, order in sorted(zip(work.stage_rank, play.order, strict=True))]


class _Play:
    """The step as far as it is made; lists have an entry for each stage."""

    def __init__(self, work: Work, ways: Ways) -> None:
        stages, self.microbatches, self.ways = work.stages, work.microbatches, ways
        self.seconds, self.saved, self.pending = work.seconds, work.saved, work.pending
        self.lag, self.back_lag = (*work.lag, 0.0), (0.0, *work.back_lag)
        caps = [work.cap[rank] for rank in work.stage_rank]
        self.cap = [cap + 1e-9 * max(abs(cap), 1.0) if cap < inf else inf for cap in caps]
        # Moments nearer than this are one: which choice is taken must not hang on how sums are rounded.
        self.near = [
            _NEAR * (one + other) for one, other in zip(work.seconds[FORWARD], work.seconds[INPUT], strict=True)
        ]
        self.order: Coded = [[] for _ in range(stages)]
        self.clock, self.idle, self.held = [0.0] * stages, [0.0] * stages, [0.0] * stages
        self.done = [[0] * stages for _ in range(4)]  # actions run, by their code
        self.input_at: list[list[float]] = [[] for _ in range(stages)]
        self.gradient_at: list[list[float]] = [[] for _ in range(stages)]
        self.input_at[0] = [0.0] * work.microbatches
        self.before_first = self._room()

    def warm_up(self) -> None:
        """Run the forwards before each stage's first input half, as many as fit until its gradient comes."""
        forward, ends = self.seconds[FORWARD], self._earliest_ends()
        count, gradient_at = 0, 0.0
        for stage in reversed(range(len(ends))):
            own = ends[stage]
            fitting = sum(end <= gradient_at + self.near[stage] for end in own)
            begins = [end - forward[stage] for end in own]
            if self.ways.late_start and fitting < len(own) and begins[fitting] < gradient_at - self.near[stage]:
                fitting += 1
            count = max(min(count + 1, self.microbatches), fitting)
            self.before_first[stage] = count
            gradient_at = max(own[count - 1], gradient_at) + self.seconds[INPUT][stage] + self.back_lag[stage]
        for stage, wanted in enumerate(self.before_first):
            for _ in range(wanted):
                self._forward(stage)
            self.idle[stage] = 0.0  # a rank's step begins with its own first action, and on the way none is late

    def visit(self, stage: int, microbatch: int) -> bool:
        """Run a stage's part of a round: a forward where one is due, and this microbatch's input half."""
        done = self.done[FORWARD]
        if microbatch and done[stage] < self.microbatches and not self._may_skip(stage, microbatch):
            while self.held[stage] + self.saved[stage] > self.cap[stage] and self._has_weight(stage):
                self._weight(stage)
            if self.held[stage] + self.saved[stage] <= self.cap[stage]:
                self._fill(stage, self.input_at[stage][done[stage]])
                self._forward(stage)
        if done[stage] <= microbatch:
            return False
        self._fill(stage, self.gradient_at[stage][microbatch])
        self._input(stage)
        return True

    def finish(self, stage: int) -> None:
        """Run the weight halves that are left."""
        while self._has_weight(stage):
            self._weight(stage)

    def _room(self) -> list[int]:
        """The most forwards before each stage's first input half: one less on each stage, for the rounds to work."""
        room: list[int] = []
        most = inf
        for saved, cap in zip(self.saved, self.cap, strict=True):
            fits = cap // saved if saved and cap < inf else inf
            most = fits if fits >= self.microbatches else min(most - 1, fits)
            room.append(int(min(most, self.microbatches)))
        return room

    def _earliest_ends(self) -> list[list[float]]:
        """When forwards end that wait for nothing but each other."""
        ends: list[list[float]] = []
        for stage, count in enumerate(self.before_first):
            own: list[float] = []
            now = 0.0
            for microbatch in range(count):
                if stage:
                    now = max(now, ends[stage - 1][microbatch] + self.lag[stage - 1])
                now += self.seconds[FORWARD][stage]
                own.append(now)
            ends.append(own)
        return ends

    def _may_skip(self, stage: int, microbatch: int) -> bool:
        """Whether a stage leaves a forward out in this round."""
        done = self.done[FORWARD]
        if done[stage] <= microbatch:
            return False
        if done[stage] >= len(self.input_at[stage]):
            return True
        ahead = done[stage] - done[stage + 1] if stage + 1 < len(done) else 0
        late = self.clock[stage] + self.seconds[FORWARD][stage] > self.gradient_at[stage][microbatch] - self.near[stage]
        return self.ways.skip and ahead > 1 and late

    def _has_weight(self, stage: int) -> bool:
        return self.done[WEIGHT][stage] < self.done[INPUT][stage]

    def _fill(self, stage: int, until: float) -> None:
        """Run weight halves in a gap."""
        seconds = self.seconds[WEIGHT][stage]
        near = self.near[stage]
        while (gap := until - self.clock[stage]) > near and self._has_weight(stage):
            if gap < seconds - near and not self._overfills(stage, gap):
                return
            self._weight(stage)

    def _overfills(self, stage: int, gap: float) -> bool:
        """Whether a gap gets a weight half longer than itself."""
        overfill = self.ways.overfill
        if overfill == "worst":
            return self.idle[stage] + gap > max(self.idle) + self.near[stage]
        return overfill == "behind" and self.idle[stage] > min(self.idle) + self.near[stage]

    def _forward(self, stage: int) -> None:
        end = self._run(FORWARD, stage, self.input_at[stage][self.done[FORWARD][stage]])
        self.held[stage] += self.saved[stage]
        if stage + 1 < len(self.clock):
            self.input_at[stage + 1].append(end + self.lag[stage])
        else:
            self.gradient_at[stage].append(end)

    def _input(self, stage: int) -> None:
        end = self._run(INPUT, stage, self.gradient_at[stage][self.done[INPUT][stage]])
        self.held[stage] += self.pending[stage] - self.saved[stage]
        if stage:
            self.gradient_at[stage - 1].append(end + self.back_lag[stage])

    def _weight(self, stage: int) -> None:
        self._run(WEIGHT, stage, 0.0)
        self.held[stage] -= self.pending[stage]

    def _run(self, code: int, stage: int, ready: float) -> float:
        """Run a stage's next action of a kind; returns its end."""
        microbatch = self.done[code][stage]
        self.order[stage].append((code * len(self.clock) + stage) * self.microbatches + microbatch)
        self.done[code][stage] += 1
        begin = max(self.clock[stage], ready)
        self.idle[stage] += begin - self.clock[stage]
        self.clock[stage] = begin + self.seconds[code][stage]
        return self.clock[stage]
