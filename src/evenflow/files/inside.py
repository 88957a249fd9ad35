"""Keeps what we are handed inside its folder: files of a model, a checkpoint or a data set never lead elsewhere."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from evenflow.errors import InputError

_MOST_HEADER = 100_000_000  # bytes of a safetensors header: the format's own limit, which its readers hold to as well
_LENGTH_BYTES = 8
_INDEX = "model.safetensors.index.json"
_MOST_INDEX = 2**28


def check_inside(folder: Path, file: Path) -> None:
    """Refuse a file that is none, or a link that leads out of its folder.

    In a snapshot of the hub's cache files are links to the `blobs` of the same model, which is as good as inside.

    Raises:
        InputError: which, and where it leads.
    """
    root, found = folder.resolve(), file.resolve()
    allowed = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(found.is_relative_to(own) for own in allowed):
        raise InputError(f"{file} leads out of its folder, to {found}; a copy of that in the folder would do")
    if not found.is_file():
        raise InputError(f"{file} is {_kind(found)}, not a file; a safetensors file or none would do")


def check_names(folder: Path, names: list[str], where: str) -> None:
    """Refuse names of files that are paths, which could name anything.

    Raises:
        InputError: which one.
    """
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise InputError(f"{where} names {name[:80]!r}, which is no file of {folder}; plain names would do")


def check_shard_header(file: Path) -> None:
    """Refuse a safetensors file whose header is longer than the format allows, or than the file, before it is read.

    Raises:
        InputError: the length that it claims.
    """
    try:
        with file.open("rb", buffering=0) as opened:
            start = opened.read(_LENGTH_BYTES)
        size = file.stat().st_size
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    length = int.from_bytes(start, "little")
    if len(start) < _LENGTH_BYTES or length > min(_MOST_HEADER, size - _LENGTH_BYTES):
        raise InputError(
            f"{file} is not a readable safetensors file: it claims a header of {length} bytes, and has {size} in all"
        )


def check_index(folder: Path) -> None:
    """Refuse an index of shards that names files elsewhere; without one, or with plain names, nothing is wrong.

    Raises:
        InputError: which name, or that it is no index.
    """
    file = folder / _INDEX
    if not (file.exists() or file.is_symlink()):
        return
    check_inside(folder, file)
    try:
        if file.stat().st_size > _MOST_INDEX:
            raise ValueError("it is too large")
        shards = json.loads(file.read_bytes())["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is not an index of weights: {error}; without it the shards are read") from None
    check_names(folder, sorted({str(name) for name in shards}), str(file))


def _kind(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link to nothing"
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")
