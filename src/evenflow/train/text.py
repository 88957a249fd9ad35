"""Finds the text to train on: a file, or every text file below a folder, as one document each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from evenflow.errors import InputError

_PROBE_BYTES = 8 * 1024


def read_documents(path: Path) -> Iterator[str]:
    """Yield the documents at `path`: a text file is one, a folder has one for each text file below it.

    A folder's files come in the order of their paths. Passed over are hidden files and folders,
    `__pycache__`, empty files, files that are not UTF-8 text, and links out of the folder.

    Raises:
        InputError: nothing is there, a file cannot be read, or no text was found; the first one at once,
            the others while reading.
    """
    if path.is_file():
        return _read_file(path)
    if path.is_dir():
        return _read_folder(path)
    if path.exists():
        raise InputError(f"--data {path} is neither a file nor a folder; a text file or a folder of them would do")
    raise InputError(f"--data {path} does not exist; a text file or a folder of text files would do")


def fingerprint(path: Path) -> str:
    """A hash of the names, sizes and times of the files at `path`: equal while nobody changed the text.

    It reads no file, so it costs next to nothing beside encoding the text again.

    Raises:
        InputError: nothing is there.
    """
    if path.is_dir():
        files = [(file.relative_to(path).as_posix(), file) for file in files_below(path)]
    elif path.is_file():
        files = [(path.name, path)]
    else:
        raise InputError(f"--data {path} does not exist; a text file or a folder of text files would do")
    digest = hashlib.blake2b(digest_size=16)
    for name, file in files:
        facts = file.stat()
        # A name may hold anything but NUL, so NUL keeps two different lists from hashing alike.
        digest.update(os.fsencode(name) + f"\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _read_file(path: Path) -> Iterator[str]:
    text = _read_text(path)
    if text is None:
        raise InputError(f"--data {path} is not UTF-8 text; a text file or a folder of them would do")
    if not text:
        raise InputError(f"--data {path} is empty; a text file or a folder of text files would do")
    yield text


def _read_folder(folder: Path) -> Iterator[str]:
    files = binary = 0
    found = False
    for file in files_below(folder):
        files += 1
        text = _read_text(file)
        if text is None:
            binary += 1
        elif text:
            found = True
            yield text
    if not found:
        raise InputError(
            f"--data {folder} has no text: of {files} files below it (hidden ones and links out of it aside) "
            f"{binary} are not UTF-8 and {files - binary} are empty; a folder with text files would do"
        )


def files_below(folder: Path) -> list[Path]:
    """The files of a folder and those in it, in the order of their paths; a file is itself alone.

    Raises:
        InputError: a folder cannot be read.
    """
    if not folder.is_dir():
        return [folder]
    root = folder.resolve()
    files = []
    # Linked folders are not entered: what lies inside is found anyway, and a link may go round in a circle.
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not _is_passed_over(name)]
        for name in names:
            file = Path(parent, name)
            if _is_passed_over(name) or not file.is_file():
                continue  # also a broken link, a socket or a pipe
            if file.is_symlink() and not file.resolve().is_relative_to(root):
                continue
            files.append(file)
    return sorted(files, key=lambda file: file.relative_to(folder).parts)


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _read_text(path: Path) -> str | None:
    """The file's text, its line ends as they are, without a byte-order mark; None if it is binary."""
    try:
        with path.open("rb") as file:
            # Most binary files show it at once; a checkpoint of many gigabytes is not read to the end for it.
            start = file.read(_PROBE_BYTES)
            if b"\0" in start:
                return None
            content = start + file.read()
    except OSError as error:
        _refuse(error)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _refuse(error: OSError) -> NoReturn:
    # Passing over what cannot be read would train on less than was asked for, and say nothing.
    raise InputError(
        f"--data: {error.filename} cannot be read ({error.strerror}); make it readable or move it elsewhere"
    ) from None
