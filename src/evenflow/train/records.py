"""A run's files beside its checkpoints, held against what a checkpoint says of them: no resume trusts a damaged one.

A checkpoint notes how long each of them was after its step, and the hash of that much. What was appended later is cut
off, since those steps are taken again; a file whose beginning is not what it was is set aside and named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from evenflow.errors import FaultError, InputError
from evenflow.files import refuse_place

DAMAGED = "damaged-"
_PART_BYTES = 2**24
_MOST_STEPS = 10**5  # that a save may take: of steps before those nobody asks any more


@dataclass(frozen=True, slots=True)
class Written:
    """The beginning of a file as it was written.

    Attributes:
        size: its bytes.
        xxh3: the 128-bit xxHash (XXH3) of them.
    """

    size: int
    xxh3: str


class Lines:
    """Knows what a file of lines is after each step, whether or not the disk has taken them yet.

    Args:
        path: the file, with the lines of steps before.
    """

    def __init__(self, path: Path) -> None:
        self._digest, self._size = _digest(path, None) if path.exists() else (xxhash.xxh3_128(), 0)
        self._after: dict[int, Written] = {}

    def add(self, step: int, text: str) -> None:
        """A step's line is appended."""
        data = text.encode()
        self._digest.update(data)
        self._size += len(data)
        self._after[step] = Written(self._size, self._digest.hexdigest())
        if len(self._after) > _MOST_STEPS:
            del self._after[next(iter(self._after))]

    def after(self, step: int) -> Written:
        """The file once a step of this start was done."""
        return self._after[step]


def written_file(path: Path) -> Written | None:
    """A file as it is now; None where there is none.

    Raises:
        InputError: it may not be read.
        FaultError: the disk failed.
    """
    if not path.exists():
        return None
    digest, size = _digest(path, None)
    return Written(size, digest.hexdigest())


def why_damaged(path: Path, written: Written) -> str | None:
    """What is wrong with the beginning of a file, where it is not as it was written.

    Raises:
        InputError: it may not be read.
        FaultError: the disk failed.
    """
    if not path.exists():
        return f"{path} is gone, and had {written.size} bytes" if written.size else None
    digest, size = _digest(path, written.size)
    if size < written.size:
        return f"{path} is damaged: it has {size} of the {written.size} bytes that were written"
    if digest.hexdigest() != written.xxh3:
        return (
            f"{path} is damaged: the hash of its first {size} bytes is {digest.hexdigest()}, they were written as "
            f"{written.xxh3}"
        )
    return None


def take_back(path: Path, step: int, written: Written | None, truncate: Callable[[Path, int], None]) -> str | None:
    """Cut a file of lines back to those of the steps up to `step`; one that is damaged is set aside.

    Args:
        path: the file.
        step: the last step whose line stays; 0 for none.
        written: what it was after that step; None where the checkpoint does not say, being of an older evenflow.
        truncate: how to cut it back then, which finds lines that cannot be read.

    Returns:
        What is wrong with it, and what became of it; None where nothing is.

    Raises:
        InputError: it may not be read or written to.
        FaultError: the disk failed.
    """
    written = written if step else Written(0, xxhash.xxh3_128().hexdigest())
    try:
        why = _cut_back(path, step, written, truncate)
        if why is None:
            return None
        kept = ""
        if path.exists():
            aside = free_name(path.with_name(DAMAGED + path.name))
            path.rename(aside)
            kept = f"it is kept as {aside}, and "
    except OSError as error:
        refuse_place(path, error)
    return f"{why}; {kept}a new file has the lines of the steps after {step}"


def _cut_back(path: Path, step: int, written: Written | None, truncate: Callable[[Path, int], None]) -> str | None:
    """Why a file cannot be cut back, where what is in it is wrong."""
    if written is None:
        try:
            if path.exists():
                truncate(path, step)
        except InputError as error:
            return str(error)
        return None
    why = why_damaged(path, written)
    if why is None and path.exists():
        os.truncate(path, written.size)
    return why


def read_written(facts: Mapping[str, Mapping[str, object]]) -> dict[str, Written]:
    """What a manifest says of files, by name.

    Raises:
        KeyError, TypeError, ValueError: it is not what `write_written` gave.
    """
    return {str(name): Written(int(str(own["bytes"])), str(own["xxh3"])) for name, own in facts.items()}


def write_written(files: Mapping[str, Written]) -> dict[str, dict[str, int | str]]:
    """The same as a manifest has it."""
    return {name: {"bytes": own.size, "xxh3": own.xxh3} for name, own in files.items()}


def free_name(path: Path) -> Path:
    """A name that nothing has yet: this one, or with a number behind it."""
    names = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in range(1, 10**6))
    return next(name for name in names if not name.exists())


def _digest(path: Path, most: int | None) -> tuple[xxhash.xxh3_128, int]:
    """A hash of a file's first bytes, which may still be added to, and how many they are."""
    digest, size = xxhash.xxh3_128(), 0
    try:
        with path.open("rb", buffering=0) as file:
            while part := file.read(_PART_BYTES if most is None else min(most - size, _PART_BYTES)):
                digest.update(part)
                size += len(part)
    except (PermissionError, IsADirectoryError, FileNotFoundError) as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except OSError as error:
        raise FaultError(f"{path} cannot be read: {error.strerror}") from None
    return digest, size
