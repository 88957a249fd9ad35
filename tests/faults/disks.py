"""Folders that the kernel itself lets nobody write to, for as long as a test wants; takes root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def as_root(*command: object) -> str:
    """Run what only root may; returns what it printed.

    Raises:
        PermissionError: it failed, and what it said.
    """
    try:
        done = subprocess.run([str(own) for own in command], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise PermissionError(f"{command[0]} is not there") from None
    except subprocess.CalledProcessError as error:
        raise PermissionError(f"{command[0]} takes root: {error.stderr.strip()}") from None
    return done.stdout.strip()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Within, the kernel lets nobody write below a folder.

    Raises:
        PermissionError: nothing may be mounted here, or no such folder is there; nothing stays mounted.
    """
    with bound(folder, folder):
        as_root("mount", "-o", "remount,bind,ro", folder)
        yield


@contextmanager
def bound(folder: Path, place: Path) -> Iterator[None]:
    """Within, a folder is at another place as well.

    Raises:
        PermissionError: nothing may be mounted here, or no such folder is there; nothing stays mounted.
    """
    as_root("mount", "--bind", folder, place)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def may_mount(folder: Path) -> bool:
    """Whether a folder can be made read-only here."""
    try:
        with read_only(folder):
            return True
    except PermissionError:
        return False
