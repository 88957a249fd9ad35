"""How far another host's clock is from ours, so that the spans of ranks on several hosts lie on one time scale.

Monotonic clocks of two hosts begin at different moments and drift by some microseconds a second. A question and
its answer bound the difference by half the time they take (Cristian, "Probabilistic clock synchronization",
1989); of the newest answers the quickest is believed.
"""

from __future__ import annotations

import time
from collections import deque

_KEPT = 16


class Clock:
    """The difference between another host's clock and this one's.

    Attributes:
        answers: how many answers have come.
        asked: when the last question was asked.
    """

    def __init__(self) -> None:
        self.answers = 0
        self.asked = 0.0
        self._newest: deque[tuple[float, float]] = deque(maxlen=_KEPT)

    def question(self) -> dict[str, object]:
        """What to ask now."""
        self.asked = time.perf_counter()
        return {"kind": "clock", "asked": self.asked}

    def answered(self, asked: float, there: float) -> None:
        """An answer has come: the other clock showed `there` after we asked at `asked`."""
        now = time.perf_counter()
        self.answers += 1
        self._newest.append((now - asked, there - (asked + now) / 2))

    @property
    def ahead_s(self) -> float:
        """What to subtract from a moment of the other clock to have it on ours."""
        return min(self._newest)[1] if self._newest else 0.0
