"""Who is slower than planned, and what a step would gain were a rank faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from evenflow.timeline.timeline import Timeline

_MORE = 0.05  # of a step: what one rank has to lose, beyond what all lose, to be called a straggler


@dataclass(frozen=True, slots=True)
class Straggler:
    """A rank whose actions took longer than predicted, beyond what the ranks' actions do in the median.

    Attributes:
        rank: the rank.
        busy_s: its measured seconds in forward and backward.
        expected_s: what was predicted, times the ranks' median of measured over predicted.
    """

    rank: int
    busy_s: float
    expected_s: float

    @property
    def late_s(self) -> float:
        """Seconds that it took more than expected."""
        return self.busy_s - self.expected_s


@dataclass(frozen=True, slots=True)
class Faster:
    """What a step would be, were one rank faster: by re-simulation.

    Attributes:
        rank: the rank.
        speed: how fast it would compute, as a multiple of what it does: 1.1 is 10% faster.
        step_s: the step's seconds then.
        now_s: the step's seconds as it is.
    """

    rank: int
    speed: float
    step_s: float
    now_s: float

    @property
    def gain(self) -> float:
        """How much faster the step would be: now / then - 1."""
        return self.now_s / self.step_s - 1


def stragglers(predicted: Timeline, measured: Timeline) -> tuple[Straggler, ...]:
    """Ranks that lost more than a twentieth of a step against the others, the slowest first.

    With two ranks the median is the quicker one's ratio: one of two that is slow would else pass for half slow.
    """
    ratios = [
        theirs.busy_s / ours.busy_s if ours.busy_s > 0 else 1.0
        for ours, theirs in zip(predicted.ranks, measured.ranks, strict=True)
    ]
    usual = usual_pace(ratios)
    found = [
        Straggler(rank, theirs.busy_s, ours.busy_s * usual)
        for rank, (ours, theirs) in enumerate(zip(predicted.ranks, measured.ranks, strict=True))
    ]
    late = [own for own in found if own.late_s > _MORE * measured.step_s]
    return tuple(sorted(late, key=lambda own: -own.late_s))


def usual_pace(ratios: Sequence[float]) -> float:
    """What the ranks' measured over expected seconds are in the median; of two, what the quicker one's are."""
    return min(ratios) if len(ratios) == 2 else median(ratios)
