"""Takes the commands out of the README, whose blocks are indented: each with its section, and what is shown of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
_INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.M)
_BEGINS = ("evenflow ", ".venv/bin/evenflow ", "make ", "torchrun ")


@dataclass(frozen=True, slots=True)
class Shown:
    """A command of the README.

    Attributes:
        section: the heading above it.
        command: without prompt and comment; one that ends in a backslash goes on.
        said: what is shown below one with a prompt, its long lines broken.
    """

    section: str
    command: str
    said: str


def readme_commands() -> list[Shown]:
    """In the order in which they stand."""
    found: list[Shown] = []
    for part in re.split(r"^#+ ", _FENCE.sub("", README.read_text()), flags=re.M)[1:]:
        for block in _INDENTED.findall(part):
            lines = re.sub(r"\\\n\s+", "", block).splitlines()
            found += _commands(part.partition("\n")[0], [line.removeprefix("    ") for line in lines])
    return found


def _commands(section: str, lines: list[str]) -> list[Shown]:
    """Those of a block: behind prompts, with what follows each, or without, one a line."""
    if not any(line.startswith("$ ") for line in lines):
        bare = [re.sub(r"\s+# .*", "", line) for line in lines if line.startswith(_BEGINS)]
        return [Shown(section, line, "") for line in bare]
    found: list[Shown] = []
    for line in lines:
        if line.startswith("$ "):
            found.append(Shown(section, line.removeprefix("$ "), ""))
        else:
            found[-1] = Shown(section, found[-1].command, f"{found[-1].said}\n{line}".strip())
    return found


def readme_blocks(kind: str) -> list[str]:
    """The bodies of its fenced blocks of a kind, such as `toml`."""
    return [body for own, body in _FENCE.findall(README.read_text()) if own == kind]
