"""Takes commands and Python out of the documentation's pages, with what a comment before a block says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGES = Path(__file__).parents[2] / "docs"
_FENCE = re.compile(
    r"(?:<!-- (?P<said>[^\n]*?) -->\n)?^```(?P<kind>console|bash|python|text)[^\n]*\n(?P<body>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a page.

    Attributes:
        page: its file's name.
        kind: `console`, `python` or `text`.
        said: what a comment right before it says, such as `not run here: needs Slurm`.
        body: its lines.
    """

    page: str
    kind: str
    said: str
    body: str

    @property
    def is_run(self) -> bool:
        """Whether it can be run on the machine of a test, in seconds."""
        return not (self.said.startswith("not run here") or self.is_long)

    @property
    def is_long(self) -> bool:
        """Whether CI leaves it to `make parity`."""
        return self.said.startswith("run by make parity")

    @property
    def is_output(self) -> bool:
        """Whether it is just what the command before it prints."""
        return self.kind == "text" and self.said == "what it prints"

    @property
    def is_excerpt(self) -> bool:
        """Whether each of its lines is one that the command before it prints."""
        return self.kind == "text" and self.said == "among what it prints"

    @property
    def exit_code(self) -> int:
        """What its commands leave with."""
        found = re.fullmatch(r"leaves with (\d+)", self.said)
        return int(found[1]) if found else 0

    @property
    def commands(self) -> list[str]:
        """The lines after a prompt; one that ends in a backslash goes on."""
        joined = self.body.replace("\\\n", " ")
        return [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]


def blocks_of(page: Path) -> list[Block]:
    """A page's blocks, in order."""
    return [
        Block(page.name, found["kind"].replace("bash", "console"), found["said"] or "", found["body"])
        for found in _FENCE.finditer(page.read_text())
    ]


def page_order() -> list[Path]:
    """The pages in the order in which the site's menu has them."""
    names = re.findall(r"^  - [^:]+: (\S+\.md)$", (PAGES.parent / "mkdocs.yml").read_text(), re.M)
    return [PAGES / name for name in names]
