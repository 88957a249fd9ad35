"""ranks.json: which process is which rank, so that a person or a script can find, watch or end it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evenflow.errors import InputError
from evenflow.files.document import Part, checked, parse_json, read_text, write_json
from evenflow.files.parts import Count, Index


@dataclass(frozen=True, slots=True)
class RankProcess:
    """The process that a rank runs as, and the host it runs on."""

    rank: int
    pid: int
    host: str


class RankProcessPart(Part):
    """One entry. The file is a plain list without a version: its keys are a promise."""

    rank: Index
    pid: Count
    host: str


def save_ranks(ranks: Sequence[RankProcess], path: Path) -> None:
    """Write ranks.json, atomically."""
    parts = [RankProcessPart(rank=own.rank, pid=own.pid, host=own.host) for own in ranks]
    write_json(path, [part.model_dump() for part in parts])


def load_ranks(path: Path) -> tuple[RankProcess, ...]:
    """Read ranks.json.

    Raises:
        InputError: the file is not a list of ranks.
    """
    data = parse_json(read_text(path), str(path))
    if not isinstance(data, list):
        raise InputError(f"{path}: should be one JSON list with an entry for each rank")
    parts = [checked(RankProcessPart, entry, f"{path}: entry {number}") for number, entry in enumerate(data)]
    return tuple(RankProcess(part.rank, part.pid, part.host) for part in parts)
