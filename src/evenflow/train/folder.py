"""A run's folder: refused where it holds something, and left as it was found by a run that never took a step."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from evenflow.errors import InputError
from evenflow.train.lock import LOCK, FolderLock, refuse_in_use


class RunFolder:
    """Made when it is entered; emptied again when it is left by an error before `keep`.

    Args:
        path: the folder.
        data: the run's text, which must not contain it.
        resume: whether it holds a run to go on with; nothing is ever removed from one of those.

    Attributes:
        left_by: who was killed while it ran here, where the folder still says so.
        unguarded: what to say where the file system has no locks; None where it has.
        is_emptied: whether it was emptied when it was left.

    Raises:
        InputError: it is not empty, is a file, is in use, cannot be made, or lies inside the text.
    """

    def __init__(self, path: Path, data: Path, resume: bool) -> None:
        self.path = path
        self.resume = resume
        self.left_by: str | None = None
        self.unguarded: str | None = None
        self._lock: FolderLock | None = None
        self.is_emptied = False
        self._existed = path.exists()
        self._kept = False
        if self._existed and not path.is_dir():
            raise InputError(f"--out {path} is a file; a folder that does not exist yet would do")
        if self._existed:
            self._refuse_content()
        if resume and not self._existed:
            raise InputError(f"--resume: there is no run in {path}; without --resume a new one starts there")
        if data.is_dir() and path.resolve().is_relative_to(data.resolve()):
            raise InputError(f"--out {path} lies inside --data {data}, so the run would train on its own files")

    def keep(self) -> None:
        """From now on there is something in it worth keeping."""
        self._kept = True

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--out {self.path} cannot be made: {error.strerror}; a folder that may be written would do"
            ) from None
        self._lock = FolderLock(self.path)
        try:
            self._refuse_content()  # another run may have begun and ended here meanwhile
        except InputError:
            self._lock.release()
            raise
        self.left_by = self._lock.left
        if not self._lock.holds:
            self.unguarded = (
                f"warning: the file system of --out {self.path} has no locks (flock), so a second run there would not "
                "be refused; see to it that there is none"
            )
        return self

    def _refuse_content(self) -> None:
        if not self.resume and any(child.name != LOCK for child in self.path.iterdir()):
            if self._lock is None:
                refuse_in_use(self.path)  # with who uses it, which says more
            raise InputError(
                f"--out {self.path} is not empty; a new folder, or --resume to go on with its run, would do"
            )

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        assert self._lock is not None, "it was entered"
        self.is_emptied = empties = not (kind is None or self._kept or self.resume)
        for child in self.path.iterdir() if empties else ():
            if child.name == LOCK:
                continue
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child, ignore_errors=True)
            else:
                child.unlink(missing_ok=True)
        self._lock.release()
        if empties and not self._existed:
            with suppress(OSError):
                self.path.rmdir()
