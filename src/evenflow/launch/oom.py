"""What the kernel says of processes that it has killed because memory ran out: they only show a SIGKILL themselves."""

from __future__ import annotations

from pathlib import Path

_COUNTS = Path("/proc/vmstat")


def kills_for_memory() -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not say.

    Those that ran out of their own share of it (a container's limit) count like those of a machine that is full.
    """
    try:
        counts = dict(line.split() for line in _COUNTS.read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
