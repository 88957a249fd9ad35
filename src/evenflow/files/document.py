"""What all our files share: one clear line for each mistake on reading, and writing that is atomic."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from evenflow.errors import FaultError, InputError
from evenflow.files.kinds import Kind, refuse_other, refuse_other_text

FORMAT_VERSION: Literal[6] = 6
_LINE = 110
_MOST_BYTES = 2**29  # of a file: a program of a million actions, or the metrics of a million steps, is half of it
_PART_BYTES = 2**20
_MOST_DIGITS = 40  # of a whole number; longer ones take Python long to read, and from 4300 digits on it refuses

Read = TypeVar("Read", bound="Part")
ReadDocument = TypeVar("ReadDocument", bound="Document")


class Part(BaseModel):
    """A part of a file: no keys but its own, no guessing of types, finite numbers only."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Document(Part):
    """A whole file; the version is its first key. `kind` is what it is, for messages."""

    kind: ClassVar[Kind]

    format_version: Literal[6] = FORMAT_VERSION


def read_document(path: Path, schema: type[ReadDocument]) -> ReadDocument:
    """Read a JSON file and check it.

    Raises:
        InputError: the file cannot be read, is not JSON, is of another kind or version or breaks the schema.
    """
    kind = schema.kind
    beside = None
    with contextlib.suppress(OSError):  # a name that no file can have, or of a folder that nobody may look into
        if kind.file is not None and path.is_dir() and (path / kind.file).is_file():
            beside = path / kind.file
    if beside is not None:
        raise InputError(f"{path}: is a folder, not {kind.name}; {beside}, which is in it, would do")
    text = read_text(path)
    try:
        data = parse_json(text, str(path))
    except InputError:
        refuse_other_text(text, kind, str(path))
        raise
    refuse_other(data, kind, str(path))
    _check_version(data, path)
    return checked(schema, data, str(path))


def read_text(path: Path, kind: str = "JSON") -> str:
    """A file's text; `kind` is what it should be, for messages.

    Raises:
        InputError: it cannot be read, or is not text.
    """
    try:
        found = bytearray()
        with path.open("rb") as file:
            while part := file.read(_PART_BYTES):  # to ask for the most at once would take memory for all of it
                found += part
                if len(found) > _MOST_BYTES:
                    raise InputError(f"{path}: is not a file of ours: it has more than {_MOST_BYTES // 2**20} MiB")
        return found.decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{path}: is not {kind}: it is not UTF-8 text") from None


def parse_json(text: str, where: str) -> object:
    """Read JSON; `where` names the file (and line) in the error.

    Raises:
        InputError: it is not JSON, or says one key twice. A number that is not finite is left to the schema, which
            names its key.
    """
    try:
        return json.loads(text, object_pairs_hook=_no_key_twice, parse_int=_whole_number)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: is not JSON: line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise InputError(f"{where}: is not a file of ours: it nests too deeply") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def checked(schema: type[Read], data: object, where: str) -> Read:
    """Data as its schema has it; `where` names the file (and line) in the error.

    Raises:
        InputError: the first thing that is wrong, by its key.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise InputError(_first_mistake(error, where)) from None


@contextlib.contextmanager
def refused_as(what: str) -> Iterator[None]:
    """Turn figures that no file holds, met on the way into a schema, into one line about `what`.

    Raises:
        InputError: the first figure that is wrong, by its key.
    """
    try:
        yield
    except ValidationError as error:
        raise InputError(_first_mistake(error, what)) from None


def json_text(data: object, indented: bool = True) -> str:
    """JSON with a line for each short part, or all on one line; numbers are finite."""
    return (_pretty(data, 0) if indented else _one_line(data)) + "\n"


def write_json(path: Path, data: object, indented: bool = True) -> None:
    """Write `data` as a JSON file, atomically.

    Raises:
        InputError: the place cannot be written to.
        FaultError: the disk failed or is full.
    """
    write_text(path, json_text(data, indented))


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, of text."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader, or a crash, finds the old file or the new one, never a part.

    Raises:
        InputError: the place cannot be written to.
        FaultError: the disk failed or is full.
    """
    # Not `tempfile`: its files are for their owner only, and ours are for whoever may read the folder.
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        refuse_place(path, error)


def append_text(path: Path, text: str) -> None:
    """Add whole lines to a file, in one write; a disk that takes only a part of them keeps none.

    Raises:
        InputError: the place cannot be written to.
        FaultError: the disk failed or is full.
    """
    data, before = text.encode(), None
    try:
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            if (written := file.write(data)) != len(data):
                file.write(data[written:])  # says why it took no more
    except OSError as error:
        if before is not None:
            with contextlib.suppress(OSError):
                os.truncate(path, before)
        refuse_place(path, error)


def refuse_place(path: Path, error: OSError) -> NoReturn:
    """Tell a place that the user should change from a disk that failed."""
    text = f"{path}: cannot be written: {error.strerror}"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        raise InputError(f"{text}; the folder {path.parent} would have to exist") from None
    if isinstance(error, PermissionError | IsADirectoryError):
        raise InputError(f"{text}; the path of a file that you may write would work") from None
    raise FaultError(text) from None


def sync_folder(folder: Path) -> None:
    """Make the new name itself last through a crash, on file systems that can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _check_version(data: object, path: Path) -> None:
    if not isinstance(data, dict):
        raise InputError(f"{path}: should be one JSON object")
    if "format_version" not in data:
        raise InputError(f"{path}: format_version: is missing; this evenflow reads {FORMAT_VERSION}")
    version = data["format_version"]
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise InputError(f"{path}: format_version: is {_shown(version)}; this evenflow reads {FORMAT_VERSION}")


def _first_mistake(error: ValidationError, where: str) -> str:
    key, said = mistake_of(error)
    return f"{where}: {key + ': ' if key else ''}{said}"


def mistake_of(error: ValidationError) -> tuple[str, str]:
    """The key of the first mistake, and what is wrong with it."""
    mistakes = error.errors(include_url=False)
    first = mistakes[0]
    key = ".".join(map(_key_text, first["loc"]))
    match first["type"]:
        case "missing":
            said = "is missing"
        case "extra_forbidden":
            said = "is not a key that belongs here; without it the file would be right"
        case "greater_than_equal" | "less_than_equal" as kind:
            side, bound = ("greater", "ge") if kind == "greater_than_equal" else ("less", "le")
            limit = first["ctx"][bound]
            shown = limit if isinstance(limit, int) else f"{limit:g}"
            said = f"should be {side} than or equal to {shown}, not {_shown(first['input'])}"
        case "value_error":  # what one of our own validators says
            said = str(first["ctx"]["error"])
        case _:
            said = first["msg"].removeprefix("Input ") + f", not {_shown(first['input'])}"
    more = f" (and {len(mistakes) - 1} more like it)" if len(mistakes) > 1 else ""
    return key, said + more


def _key_text(key: object) -> str:
    """A key of somebody else's, on one line."""
    text = str(key)
    return text if text.isprintable() and len(text) <= 80 else _shown(text)


def _shown(value: object) -> str:
    """A wrong value, short and on one line."""
    if isinstance(value, _LongNumber):
        return f"one of {value.digits} digits"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{_key_text(twice)}: is there twice; once would be right")
    return found


@dataclass(frozen=True, slots=True)
class _LongNumber:
    """Stands for a number too long to read, so that the schema refuses it by its key."""

    digits: int


def _whole_number(text: str) -> int | _LongNumber:
    digits = len(text.lstrip("-"))
    return int(text) if digits <= _MOST_DIGITS else _LongNumber(digits)


def _one_line(data: object) -> str:
    return json.dumps(data, allow_nan=False)


def _pretty(data: object, depth: int) -> str:
    """`json.dumps(indent=2)`, but what fits on a line and holds no deeper structure is one line."""
    if not isinstance(data, dict | list | tuple) or not data:
        return _one_line(data)
    values = list(data.values()) if isinstance(data, dict) else list(data)
    flat = _one_line(data)
    if 2 * depth + len(flat) <= _LINE and not any(_is_deep(value) for value in values):
        return flat
    inner, outer = "\n" + "  " * (depth + 1), "\n" + "  " * depth
    lines = [_pretty(value, depth + 1) for value in values]
    if isinstance(data, dict):
        lines = [f"{_one_line(str(key))}: {line}" for key, line in zip(data, lines, strict=True)]
        return "{" + inner + ("," + inner).join(lines) + outer + "}"
    if all(isinstance(value, int | float) for value in values):
        return _wrapped(lines, depth)
    return "[" + inner + ("," + inner).join(lines) + outer + "]"


def _is_deep(value: object) -> bool:
    """Whether a value holds structure of its own; a list of numbers does not count."""
    if isinstance(value, list | tuple):
        return not all(isinstance(item, int | float) for item in value)
    return isinstance(value, dict)


def _wrapped(numbers: list[str], depth: int) -> str:
    """A long list of numbers, as many on a line as fit."""
    inner, outer = "\n" + "  " * (depth + 1), "\n" + "  " * depth
    rows: list[str] = []
    row = ""
    for number in numbers:
        if row and len(row) + len(number) + 2 * depth + 4 > _LINE:
            rows.append(row)
            row = ""
        row += f"{', ' if row else ''}{number}"
    rows.append(row)
    return "[" + inner + ("," + inner).join(rows) + outer + "]"
