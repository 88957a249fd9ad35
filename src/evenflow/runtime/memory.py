"""A rank's own memory: the process's as the kernel counts it, or what it has allocated on its GPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_PAGES = Path("/proc/self/statm")  # the same counts in pages: read in a few microseconds


class MemoryMeter:
    """Peak memory above what the process held when the meter was made.

    The kernel keeps the peak of all resident pages (VmHWM); pages of files hardly change once a process
    is warm, so the peak of anonymous pages is that less the file pages now. Where the system has no
    /proc (it is not Linux) the peak reads as zero.
    """

    def __init__(self) -> None:
        (self._base,) = _kib("RssAnon")
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._pages = _PAGES.open("rb", buffering=0) if _PAGES.exists() else None
        self.mark()

    def mark(self) -> None:
        """Start the peak afresh."""
        try:
            _CLEAR.write_text("5")
        except OSError:
            return  # the peak then is that of the process's whole life

    def peak_bytes(self) -> int:
        """The most anonymous memory since the mark, above the base."""
        most, files, shared = _kib("VmHWM", "RssFile", "RssShmem")
        return max(most - files - shared - self._base, 0) * 1024

    def held_bytes(self) -> int:
        """Anonymous memory now, above the base."""
        if self._pages is None:
            return 0
        resident, shared = os.pread(self._pages.fileno(), 128, 0).split()[1:3]
        return (int(resident) - int(shared)) * self._page - self._base * 1024


class CudaMemoryMeter:
    """Peak memory that torch has allocated on a GPU for this process, above what it held when the meter was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._base = torch.cuda.memory_allocated(device)
        self.mark()

    def mark(self) -> None:
        """Start the peak afresh."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        """The most that tensors took since the mark, above the base."""
        return max(torch.cuda.max_memory_allocated(self._device) - self._base, 0)

    def held_bytes(self) -> int:
        """What tensors take now, above the base."""
        return torch.cuda.memory_allocated(self._device) - self._base

    def reserved_bytes(self) -> int:
        """The most that torch's allocator held of the GPU since the mark: tensors, and blocks kept for later ones."""
        return torch.cuda.max_memory_reserved(self._device)


def memory_meter(device: torch.device) -> MemoryMeter | CudaMemoryMeter:
    """The meter of a rank that computes on `device`."""
    return CudaMemoryMeter(device) if device.type == "cuda" else MemoryMeter()


def _kib(*fields: str) -> list[int]:
    """Counts of the kernel's by name, read at once; 0 where there are none."""
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    except OSError:
        lines = {}
    return [int(lines[field].split()[0]) if field in lines else 0 for field in fields]
