"""Tells what kind of file somebody gave in place of another, so that the error says which command reads it.

A kind is known by keys that no other one has all of. A damaged file has lost a key or two and none of another kind's:
it is still read as what it was given as, and the error names its key.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass

from evenflow.errors import InputError

_MOST_CHARACTERS = 2**24  # of text that is no JSON and is looked at as TOML, which takes long to read


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file.

    Attributes:
        name: with its article.
        keys: at the top of one, or of each entry of a list, or of each line.
        reader: who reads it.
        file: what it is called in a run's folder; None where it is in none.
    """

    name: str
    keys: frozenset[str]
    reader: str
    file: str | None = None


PLAN = Kind(
    "a plan", frozenset({"axes", "schedule", "stages", "ranks"}),
    "`evenflow simulate`, `report`, `rehearse` and `export` read it, and so does `train --plan`", "plan.json",
)  # fmt: skip
PROFILE = Kind(
    "a profile", frozenset({"machine", "torch_version", "processes", "layers"}),
    "`evenflow plan MODEL --profile` reads it", "profile.json",
)  # fmt: skip
DEVICE = Kind(
    "a device", frozenset({"half_flops", "memory_bytes_per_s", "node_devices"}),
    "a cluster file names it, with `file` under `devices`, and `evenflow plan --cluster` reads that",
)  # fmt: skip
TIMELINES = Kind(
    "a run's timelines", frozenset({"stage_rank", "predicted", "measured"}),
    "`evenflow report` reads it in its run's folder", "timeline.json",
)  # fmt: skip
CONFIG = Kind(
    "a model's configuration", frozenset({"model_type"}), "as a MODEL, of `evenflow plan` for one, it is read"
)  # fmt: skip
DESCRIPTION = Kind(
    "what `evenflow describe --json` prints", frozenset({"architecture", "forward_flops", "layers"}),
    "no command reads it",
)  # fmt: skip
METRICS = Kind(
    "a run's metrics", frozenset({"step", "loss", "grad_norm"}),
    "`evenflow report` reads it in its run's folder", "metrics.jsonl",
)  # fmt: skip
RANKS = Kind("a run's list of processes", frozenset({"rank", "pid", "host"}), "no command reads it", "ranks.json")
CLUSTER = Kind("a cluster", frozenset({"nodes"}), "`evenflow plan --cluster` reads it")
JOB = Kind("a job", frozenset({"data", "out"}), "`evenflow train --config` reads it")

KINDS = (PLAN, PROFILE, DEVICE, TIMELINES, CONFIG, DESCRIPTION, METRICS, RANKS, CLUSTER, JOB)


def kind_of(data: object) -> Kind | None:
    """The kind that has these keys; None where no kind has."""
    found = data[0] if isinstance(data, list) and data else data
    keys = set(found) if isinstance(found, dict) else set()
    return next((kind for kind in KINDS if kind.keys <= keys), None)


def refuse_other(data: object, wanted: Kind, where: str) -> None:
    """Refuse what is plainly a file of another kind.

    Raises:
        InputError: which kind, and who reads it.
    """
    own = kind_of(data)
    has_all = isinstance(data, dict) and wanted.keys <= set(data)
    if own is not None and own is not wanted and not has_all:
        raise InputError(f"{where}: is {own.name}, not {wanted.name}; {own.reader}")


def refuse_other_text(text: str, wanted: Kind, where: str) -> None:
    """As `refuse_other`, of text that is not as the wanted kind is written: it may be JSON, JSON lines or TOML.

    Raises:
        InputError: which kind, and who reads it.
    """
    if len(text) > _MOST_CHARACTERS:
        return
    readers: tuple[Callable[[str], object], ...] = (json.loads, _first_line, tomllib.loads)
    for read in readers:
        try:
            data = read(text)
        except (ValueError, RecursionError):
            continue
        refuse_other(data, wanted, where)


def _first_line(text: str) -> object:
    found: object = json.loads(text.partition("\n")[0])
    return found
