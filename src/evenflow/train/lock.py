"""Keeps two runs out of one folder: a lock that the kernel holds for a process, and drops when it is dead."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from evenflow.errors import InputError

LOCK = ".evenflow.lock"
_MOST_BYTES = 4096
_TRIES = 100  # of taking a lock whose file its holder was just removing


class FolderLock:
    """Taken when it is made; `release` lets the next run in.

    The file says who holds it, for the message that another run gets. It is locked with flock, so a run that was
    killed leaves a file that says so, and no lock.

    Args:
        folder: the run's.

    Attributes:
        left: who left the file, where the run before died with it.
        holds: whether the file system has locks, so that nobody else can be here.

    Raises:
        InputError: another process runs in this folder: which, where, since when; the file cannot be written; or it
            is somebody else's, which is left as it is.
    """

    def __init__(self, folder: Path) -> None:
        self.left: str | None = None
        self.holds = True
        self._path = folder / LOCK
        for _ in range(_TRIES):
            try:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            except OSError as error:
                raise InputError(
                    f"{self._path} cannot be written: {error.strerror}; a folder that may be written would do"
                ) from None
            if self._take(folder):
                break
        else:
            raise InputError(f"{folder} is being taken and left by other runs; another --out would do")
        os.truncate(self._file, 0)
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.write(self._file, json.dumps(facts).encode())

    def release(self) -> None:
        """Let go, and leave no file."""
        with suppress(OSError):
            self._path.unlink()
        os.close(self._file)

    def _take(self, folder: Path) -> bool:
        """Whether the file is ours now; not where its holder removed it meanwhile."""
        try:
            self.holds = _flock(self._file, fcntl.LOCK_EX, folder)
            text = os.pread(self._file, _MOST_BYTES, 0)
            self.left = _who(text)
            if text and self.left is None:  # empty it is where its maker died before it wrote
                raise InputError(f"{self._path} is no lock of evenflow's, and is left alone; another --out would do")
            with suppress(OSError):
                if os.fstat(self._file).st_ino == self._path.stat().st_ino:
                    return True
        except InputError:
            os.close(self._file)
            raise
        os.close(self._file)
        return False


def refuse_in_use(folder: Path) -> None:
    """Refuse a folder that another process trains in; nothing is made, written or removed there.

    Raises:
        InputError: which, where, since when.
    """
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return  # no lock, or none that can be read: nothing is known of anybody
    try:
        _flock(file, fcntl.LOCK_SH, folder)
    finally:
        os.close(file)


def _flock(file: int, how: int, folder: Path) -> bool:
    """Take the lock; False on a file system without locks, where nothing can be known, and nothing is claimed."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        held_by = _who(os.pread(file, _MOST_BYTES, 0))
        raise InputError(
            f"{folder} is in use: {held_by or 'another process'} trains there; another --out, or waiting for its "
            "end, would do"
        ) from None
    except OSError:
        return False
    return True


def _who(text: bytes) -> str | None:
    try:
        facts = json.loads(text)
        return f"process {int(facts['pid'])} on {str(facts['host'])[:64]!r} (since {str(facts['since'])[:32]})"
    except (ValueError, KeyError, TypeError):
        return None
