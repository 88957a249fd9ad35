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

LOCK = ".lock"
_TRIES = 100  # of taking a lock whose file its holder was just removing


class FolderLock:
    """Taken when it is made; `release` lets the next run in.

    The file says who holds it, for the message that another run gets. It is locked with flock, so a run that was
    killed leaves a file that says so, and no lock.

    Args:
        folder: the run's.

    Attributes:
        left: who left the file, where the run before died with it.

    Raises:
        InputError: another process runs in this folder: which, where, since when; or the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.left: str | None = None
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
        held_by = _who(os.pread(self._file, 4096, 0))
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise InputError(
                f"{folder} is in use: {held_by or 'another process'} trains there; another --out, or waiting for its "
                "end, would do"
            ) from None
        except OSError:
            pass  # a file system without locks: nothing can be known, and nothing is claimed
        with suppress(OSError):
            if os.fstat(self._file).st_ino == self._path.stat().st_ino:
                self.left = held_by
                return True
        os.close(self._file)
        return False


def _who(text: bytes) -> str | None:
    try:
        facts = json.loads(text)
        return f"process {int(facts['pid'])} on {str(facts['host'])[:64]!r} (since {str(facts['since'])[:32]})"
    except (ValueError, KeyError, TypeError):
        return None
