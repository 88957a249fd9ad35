"""Edits of a file as a slip of the hand makes them: a value changed or retyped, a key deleted, doubled or misspelt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

Path = tuple[str | int, ...]
NUMBERS: tuple[float, ...] = (0, 1, -1, 2, 3, 0.5, -0.5, 65, 10**9, 10**13, 10**30, 1e-300, 1e13, 1e308)
TEXTS = ("", " ", "1f1b", "0F0", "local", "70GiB", "A100-80GB", "nowhere", "\u001b[2J\n", "x" * 2000, "\N{SNOWMAN}")
OTHERS: tuple[Any, ...] = (True, False, [], [0], [[1e308]], ["0F0"], {}, {"a": 1}, float("nan"), float("inf"))


@dataclass(frozen=True, slots=True)
class Mutation:
    """One edit of a file.

    Attributes:
        kind: edit, retype, delete, duplicate or misspell.
        path: of the value that it is made to.
        value: what stands there now, of the first two kinds.
    """

    kind: str
    path: Path
    value: Any = None

    @property
    def key(self) -> str:
        """The last key of the path; list indices are no keys."""
        return next(part for part in reversed(self.path) if isinstance(part, str))


def places(data: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Every place of a file but its whole, and what stands there; of a list the first entry and the last."""
    if path:
        yield path, data
    if isinstance(data, dict):
        for key, value in data.items():
            yield from places(value, (*path, key))
    if isinstance(data, list):
        for index in sorted({0, len(data) - 1} & set(range(len(data)))):
            yield from places(data[index], (*path, index))


@st.composite
def mutations(draw: st.DrawFn, data: dict[str, Any], null: bool) -> Mutation:
    """One edit at any place of a file; `null` where the format has one."""
    path, old = draw(st.sampled_from(list(places(data))))
    kind = draw(st.sampled_from(["edit", "edit", "retype", "delete", "duplicate", "misspell"]))
    if kind in ("duplicate", "misspell") and not isinstance(path[-1], str):
        kind = "delete"
    is_number = isinstance(old, int | float) and not isinstance(old, bool)
    match kind:
        case "edit":
            like: tuple[Any, ...] = NUMBERS if is_number else TEXTS if isinstance(old, str) else OTHERS
            return Mutation(kind, path, draw(st.sampled_from(like)))
        case "retype":
            unlike = (*OTHERS, *(TEXTS if is_number else NUMBERS), *((None,) if null else ()))
            return Mutation(kind, path, draw(st.sampled_from(unlike)))
        case _:
            return Mutation(kind, path)


def mutated(data: Any, mutation: Mutation, as_toml: bool, path: Path = ()) -> str:
    """The text of a file after the edit, in JSON or TOML; a key may be in it twice."""
    if mutation.path == path and mutation.kind in ("edit", "retype"):
        data, mutation = mutation.value, Mutation("none", ())  # within it nothing is edited again
    match data:
        case dict():
            return _table(data, mutation, as_toml, path)
        case list():
            parts = [
                mutated(value, mutation, as_toml, (*path, index))
                for index, value in enumerate(data)
                if (mutation.kind, mutation.path) != ("delete", (*path, index))
            ]
            return f"[{', '.join(parts)}]"
        case float() if as_toml:
            return repr(data)  # nan and inf have names there
        case _:
            return json.dumps(data)


def _table(data: dict[str, Any], mutation: Mutation, as_toml: bool, path: Path) -> str:
    between = " = " if as_toml else ": "
    entries = []
    for key, value in data.items():
        kind = mutation.kind if mutation.path == (*path, key) else ""
        name = json.dumps(key[:-1] if kind == "misspell" else key)
        entry = f"{name}{between}{mutated(value, mutation, as_toml, (*path, key))}"
        entries += [] if kind == "delete" else [entry, entry] if kind == "duplicate" else [entry]
    if as_toml and not path:
        return "\n".join(entries) + "\n"
    return "{" + ", ".join(entries) + "}"
