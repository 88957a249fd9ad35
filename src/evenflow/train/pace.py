"""Names a rank that has become slow, while the run goes on: slow is not dead, so nothing is ended for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from evenflow.timeline import usual_pace

_WARM_UP_STEPS = 2
_WINDOW = 17  # steps: of those, three quarters have to be slow, so a rank is named within 20 of becoming so
_ENOUGH = 5
# Times as long as the pace of the others would have it. Of the plan more, since cores that some ranks share and others
# do not, or a profile that was disturbed, may make it 2.
_SLOW, _SLOW_BY_THE_PLAN, _AGAIN_USUAL = 2.0, 2.5, 1.5


class Pace:
    """Compares the ranks' busy seconds, step by step, each with what it usually needs.

    What is usual is the rank's own best so far. A rank that is slow from its first step on has no better one: it is
    known by the plan, where its costs were measured. Those from FLOPs may well be wrong by as much as a rank is slow,
    and measured ones by enough to hide it, so the plan is asked of nothing else.

    Args:
        expected: the plan's busy seconds of each process; None where they were not measured.
    """

    def __init__(self, expected: Sequence[float] | None) -> None:
        self._expected = expected
        self._steps = 0
        self._newest: list[deque[float]] = []
        self._best: list[float] = []
        self._slow: set[int] = set()

    def take(self, busy: Sequence[float]) -> list[str]:
        """Take a step's busy seconds of each process.

        Returns:
            A line for each that has become slow, or keeps up again.
        """
        self._steps += 1
        if len(busy) < 2 or self._steps <= _WARM_UP_STEPS:
            return []
        if not self._newest:
            self._newest = [deque(maxlen=_WINDOW) for _ in busy]
            self._best = [float("inf")] * len(busy)
        for newest, seconds in zip(self._newest, busy, strict=True):
            newest.append(seconds)
        if len(self._newest[0]) < _ENOUGH:
            return []
        now = [_quick_quarter(newest) for newest in self._newest]
        self._best = [min(pair) for pair in zip(self._best, now, strict=True)]
        paces = _paces(now, self._usual())
        others = usual_pace(paces)
        return [line for rank in range(len(busy)) for line in self._judge(rank, paces[rank] / others, now[rank])]

    def _usual(self) -> list[float]:
        """Busy seconds that each rank needs where nothing slows it."""
        if self._expected is None:
            return self._best
        paces = _paces(self._best, self._expected)
        others = usual_pace(paces)
        return [
            best if pace <= _SLOW_BY_THE_PLAN * others else needs * others
            for best, pace, needs in zip(self._best, paces, self._expected, strict=True)
        ]

    def _judge(self, rank: int, times: float, busy_s: float) -> list[str]:
        if rank not in self._slow and times > _SLOW:
            self._slow.add(rank)
            return [
                f"warning: rank {rank} is slow: it takes {times:.1f} times as long as the other ranks' pace would have "
                f"it ({busy_s * 1000:.0f} ms of work in a step); all ranks wait for it"
            ]
        if rank in self._slow and times < _AGAIN_USUAL:
            self._slow.remove(rank)
            return [f"rank {rank} keeps up again"]
        return []


def _quick_quarter(seconds: Sequence[float]) -> float:
    """What a quarter of them is within: others who want the cores lengthen some steps, a slow rank all of its own."""
    return sorted(seconds)[len(seconds) // 4]


def _paces(seconds: Sequence[float], needed: Sequence[float]) -> list[float]:
    return [own / needs if needs > 0 else 1.0 for own, needs in zip(seconds, needed, strict=True)]
