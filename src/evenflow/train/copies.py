"""A rank's copy of its state, in memory that outlives the rank: what it had yet to write, its watcher writes.

A save is written beside the steps after it, so a rank may die with a state that is on no disk. The copy is the file
that it is to become, in a file without a name that is nowhere but in memory; whoever watches the rank opens it too, as
long as the rank lives, and so has it when the rank is gone. A page before it says after which step it was taken, and
nothing while it is being taken. It is not kept mapped, so but for some MiB that are being written it does not count as
the rank's own memory, whose peak is held against the plan's.
"""

from __future__ import annotations

import mmap
import os
import struct
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenflow.launch import nameless_file
from evenflow.train.shards import PART_BYTES, Piece, WrittenFile, lay_out, write_file

_PAGE = max(4096, mmap.ALLOCATIONGRANULARITY)  # what follows it can be mapped
_WINDOW_BYTES = 2**22  # of it that are mapped at once, to be written
_NOTE = struct.Struct("<qq")  # after which step, and how many bytes; zeros while nothing whole is there


class Copy:
    """A rank's side.

    Attributes:
        descriptor: of the file in memory.
    """

    def __init__(self) -> None:
        self.descriptor = nameless_file("evenflow-state")
        weakref.finalize(self, os.close, self.descriptor)
        os.truncate(self.descriptor, _PAGE)
        self._staging: Tensor | None = None

    def take(self, step: int, pieces: Mapping[str, Piece]) -> None:
        """Copy the state after `step`; memory is kept from one to the next, as fresh pages would take longer.

        Raises:
            OSError: there is not enough memory.
        """
        self._note(0, 0)
        header, tensors = lay_out(pieces)
        end = self._put(memoryview(header), _PAGE)
        for tensor in tensors:
            flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            for part in flat.split(PART_BYTES):
                end = self._put(self._on_host(part), end)
        self._note(step, end - _PAGE)

    def write(self, path: Path) -> WrittenFile:
        """Make a file of it, as `write_file` does."""
        return _write(self.descriptor, path)

    def _on_host(self, part: Tensor) -> memoryview:
        """Its bytes; what is on a GPU goes through pinned memory, which is made once."""
        if part.device.type != "cpu":
            if self._staging is None:
                self._staging = torch.empty(PART_BYTES, dtype=torch.uint8, pin_memory=True)
            part = self._staging[: len(part)].copy_(part)
        array: Any = part.numpy()
        return memoryview(array)

    def _put(self, data: memoryview, at: int) -> int:
        """Write all of it there; returns where it ends."""
        while data:
            count = os.pwrite(self.descriptor, data, at)
            data, at = data[count:], at + count
        return at

    def _note(self, step: int, size: int) -> None:
        os.pwrite(self.descriptor, _NOTE.pack(step, size), 0)


class _LeftCopy:
    """The same as whoever watches the rank has it.

    Args:
        process: the rank's, on this host and alive.
        descriptor: what the rank calls it.
        shard: the name of the file that it is to become.

    Raises:
        OSError: the process is gone, or this system does not let others see what it has open.
    """

    def __init__(self, process: int, descriptor: int, shard: str) -> None:
        self.shard = shard
        self._descriptor = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self._descriptor)  # lets go of its memory

    @property
    def held_bytes(self) -> int:
        """How much memory its state takes."""
        return os.fstat(self._descriptor).st_size - _PAGE

    @property
    def step(self) -> int:
        """After which step it was taken; 0 where it was not, or not to the end."""
        return _noted(self._descriptor)[0]

    def write(self, folder: Path) -> WrittenFile:
        """Make a file of it, in place of what the rank may have written."""
        path = folder / self.shard
        folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return _write(self._descriptor, path)


class LeftCopies:
    """Those of all ranks of a run on this host, for when one is lost."""

    def __init__(self) -> None:
        self._copies: dict[int, _LeftCopy] = {}

    def open(self, rank: int, process: int, message: Mapping[str, Any]) -> None:
        """Take what a rank says of its copy."""
        with suppress(OSError):
            self._copies[rank] = _LeftCopy(process, message["descriptor"], message["shard"])

    def steps(self) -> dict[int, int]:
        """Of each rank, after which step its copy was taken; 0 where there is none."""
        return {rank: copy.step for rank, copy in self._copies.items()}

    def held_bytes(self, rank: int) -> int:
        """How much memory a rank's copy takes."""
        return self._copies[rank].held_bytes if rank in self._copies else 0

    def write(
        self, folder: Path, step: int, but: Collection[int], look: Callable[[], object] = lambda: None
    ) -> Iterator[tuple[int, WrittenFile | str]]:
        """Write those that were taken after a step: the file of each rank, or why there is none.

        Args:
            folder: the checkpoint's, while it is being written.
            step: which copies.
            but: ranks that have written theirs.
            look: called before each file.
        """
        missing = [rank for rank, own in self.steps().items() if own == step and rank not in but]
        for rank in missing:
            copy = self._copies[rank]
            look()
            try:
                yield rank, copy.write(folder)
            except OSError as error:
                yield rank, f"{folder / copy.shard} cannot be written: {error.strerror or error}"

    def close(self) -> None:
        """Let go of their memory."""
        while self._copies:
            self._copies.popitem()[1].close()


def _noted(descriptor: int) -> tuple[int, int]:
    step, size = _NOTE.unpack(os.pread(descriptor, _NOTE.size, 0))
    return step, size


def _write(descriptor: int, path: Path) -> WrittenFile:
    return write_file(path, _parts(descriptor, _noted(descriptor)[1]))


def _parts(descriptor: int, size: int) -> Iterator[memoryview]:
    """What is copied, part by part: each is mapped only while it is in use."""
    if os.fstat(descriptor).st_size < _PAGE + size:
        raise OSError(f"of {size} bytes of a copied state some are missing")
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # its pages at once (Linux)
    for done in range(0, size, _WINDOW_BYTES):
        length = min(_WINDOW_BYTES, size - done)
        yield memoryview(mmap.mmap(descriptor, length, flags, mmap.PROT_READ, offset=_PAGE + done))
