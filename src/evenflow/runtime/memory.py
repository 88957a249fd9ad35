"""The process's own memory, read from the kernel: anonymous bytes now, and the most since a mark."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class MemoryMeter:
    """Peak memory above what the process held when the meter was made.

    The kernel keeps the peak of all resident pages (VmHWM); pages of files hardly change once a process
    is warm, so the peak of anonymous pages is that less the file pages now. Where the system has no
    /proc (it is not Linux) the peak reads as zero.
    """

    def __init__(self) -> None:
        self._base = _kib("RssAnon")
        self.mark()

    def mark(self) -> None:
        """Start the peak afresh."""
        try:
            _CLEAR.write_text("5")
        except OSError:
            return  # the peak then is that of the process's whole life

    def peak_bytes(self) -> int:
        """The most anonymous memory since the mark, above the base."""
        peak = _kib("VmHWM") - _kib("RssFile") - _kib("RssShmem")
        return max(peak - self._base, 0) * 1024


def _kib(field: str) -> int:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
