"""What the kernel says of processes that it has killed because memory ran out: they only show a SIGKILL themselves."""

from __future__ import annotations

import time
from pathlib import Path

_COUNTS = Path("/proc/vmstat")
_RECENT_S = 1.0  # a death is seen at once: what the kernel did longer ago was done to others


def kills_for_memory() -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not say.

    Those that ran out of their own share of it (a container's limit) count like those of a machine that is full.
    """
    try:
        counts = dict(line.split() for line in _COUNTS.read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0


class MemoryKills:
    """Knows whether the kernel has killed anybody here for want of memory a moment ago, as long as it is asked to look.

    The count is the whole machine's, so one of hours ago says nothing of a rank that dies now.
    """

    def __init__(self) -> None:
        count = kills_for_memory()
        self._before, self._counted = count, count
        self._at = time.monotonic()

    def look(self) -> None:
        """Count, where that was last done some time ago; all who could tell are alive."""
        if time.monotonic() - self._at >= _RECENT_S:
            self._before, self._counted = self._counted, kills_for_memory()
            self._at = time.monotonic()

    @property
    def any_recent(self) -> bool:
        """Whether there was one since the look before the last."""
        return kills_for_memory() > self._before
