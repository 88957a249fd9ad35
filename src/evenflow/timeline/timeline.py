"""What happened when on which rank during one step: predicted by the simulator or measured by the executor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evenflow.program import (
    Action,
    Backward,
    Forward,
    InputBackward,
    Norm,
    Program,
    Step,
    WeightBackward,
)

TimelineOrigin = Literal["predicted", "measured"]

BUSY = (Forward, Backward, InputBackward, WeightBackward)
OPTIMIZER = (Norm, Step)


@dataclass(frozen=True, slots=True)
class Event:
    """One action's span, in seconds on a clock that all ranks share.

    A compute action starts once its inputs are there: waiting for them is the gap before it.
    """

    action: Action
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """How long the action took."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class RankTimeline:
    """One rank's step, its actions in columns.

    Attributes:
        begin_s: when its step before ended, so that a step's wall time has no holes.
        end_s: when its STEP ended.
        actions: its actions, in the program's order.
        starts: when each began.
        ends: when each ended.
        peak_bytes: the most memory it held (above what the process held before the model was built).
        memory: bytes held after each action (empty if not known).
    """

    begin_s: float
    end_s: float
    actions: tuple[Action, ...]
    starts: tuple[float, ...]
    ends: tuple[float, ...]
    peak_bytes: int
    memory: tuple[int, ...] = ()

    @property
    def events(self) -> tuple[Event, ...]:
        """One for each action."""
        return tuple(map(Event, self.actions, self.starts, self.ends))

    @property
    def wall_s(self) -> float:
        """The step's wall time on this rank."""
        return self.end_s - self.begin_s

    @property
    def busy_s(self) -> float:
        """Seconds in forward and backward."""
        return self._seconds(BUSY)

    @property
    def optimizer_s(self) -> float:
        """Seconds in the norm and the update."""
        return self._seconds(OPTIMIZER)

    @property
    def idle_s(self) -> float:
        """Seconds that are neither busy nor optimizer."""
        return self.wall_s - self.busy_s - self.optimizer_s

    def _seconds(self, kinds: tuple[type[Action], ...]) -> float:
        columns = zip(self.actions, self.starts, self.ends, strict=True)
        return sum(end - start for action, start, end in columns if type(action) in kinds)


@dataclass(frozen=True, slots=True)
class Timeline:
    """One step of all ranks of a program.

    Attributes:
        origin: whether it was predicted or measured.
        program: what ran.
        ranks: each rank's step.
        clock_error_s: the most by which moments of two ranks may be apart wrongly, since their hosts' clocks were
            compared over a network; zero on one host.
        overhead_s: what taking an action is known to have cost its rank before the action itself.
    """

    origin: TimelineOrigin
    program: Program
    ranks: tuple[RankTimeline, ...]
    clock_error_s: float = 0.0
    overhead_s: float = 0.0

    @property
    def step_s(self) -> float:
        """Seconds of the step: ranks leave it at different moments but take equally long from step to step."""
        return sum(rank.wall_s for rank in self.ranks) / len(self.ranks)

    @property
    def idle_fraction(self) -> float:
        """Summed idle / (ranks x step)."""
        return sum(rank.idle_s for rank in self.ranks) / (len(self.ranks) * self.step_s)

    @property
    def imbalance(self) -> float:
        """Max busy / mean busy over ranks; 1 where none was busy."""
        busy = [rank.busy_s for rank in self.ranks]
        return max(busy) * len(busy) / sum(busy) if sum(busy) > 0 else 1.0
