"""Every command of the documentation is run, in the order of the pages; what cannot run here is parsed."""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path

import pytest

from evenflow.cli import COMMANDS
from evenflow.program import SCHEDULES
from tests.docs.blocks import PAGES, Block, blocks_of, page_order
from tests.docs.running import parse_command, run_command


def _run(command: str, block: Block, capfd: pytest.CaptureFixture[str]) -> str:
    """What it writes to standard output."""
    ended = run_command(command, capfd)
    assert ended.code == block.exit_code, f"{block.page}: {command}\n{ended.err[-2000:]}"
    return ended.out


def _lines(text: str) -> list[str]:
    """What is the same each time: without the seconds that a search took."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    return [line for line in lines if not line.startswith("search ")]


def _check_output(block: Block, printed: str) -> None:
    """Hold a block that is (among) what a command prints against what it did print."""
    if block.is_output:
        assert _lines(printed) == _lines(block.body), block.page
    if block.is_excerpt:
        missing = [line for line in _lines(block.body) if line not in _lines(printed)]
        assert not missing, f"{block.page}: {missing}\nare not in\n{printed}"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the commands find what a clone has."""
    for name in ("examples", "docs"):
        (tmp_path / name).symlink_to(PAGES.parent / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_command_works(clone: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, so that what is imported once serves all; Python blocks of a page share their names."""
    before, ran = set(SCHEDULES), 0
    try:
        for page in page_order():
            names: dict[str, object] = {"__name__": "__main__"}
            printed: str | None = ""  # None after what was not run
            for block in blocks_of(page):
                if not block.is_run:
                    printed = None
                    continue
                if printed is not None:
                    _check_output(block, printed)
                if block.kind == "python":
                    exec(compile(block.body, f"{page.name}", "exec"), names)
                    ran += 1
                for command in block.commands if block.kind == "console" else ():
                    printed = _run(command, block, capfd)
                    ran += 1
    finally:
        for name in set(SCHEDULES) - before:  # those that a page added
            del SCHEDULES[name]
    assert ran > 30
    assert os.access("start.sh", os.X_OK)


def _long() -> list[tuple[Block, Block]]:
    """The blocks that only `make parity` runs, each with the one after it."""
    pages = [blocks_of(page) for page in page_order()]
    return [(block, after) for blocks in pages for block, after in pairwise(blocks) if block.is_long]


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("block", "after"), _long(), ids=lambda own: f"{own.page} {' '.join(own.commands)[-40:]}")
def test_long_commands_print_what_the_page_says(
    clone: Path, capfd: pytest.CaptureFixture[str], block: Block, after: Block
) -> None:
    printed = [_run(command, block, capfd) for command in block.commands]
    assert after.is_output or after.is_excerpt, f"{block.page}: {block.commands}: what does it print?"
    _check_output(after, printed[-1])


def test_what_is_not_run_is_parsed() -> None:
    left = [block for page in page_order() for block in blocks_of(page) if not block.is_run]
    assert left
    for block in left:
        for command in block.commands:
            parse_command(command)


def test_what_is_not_run_says_why() -> None:
    """A machine that no test has, or the test that runs it; seconds are no reason."""
    for page in page_order():
        for block in blocks_of(page):
            if block.said.startswith("not run here"):
                tests = re.findall(r"tests/\w+", block.said)
                assert tests, f"{page.name}: {block.said}: which test runs what can be run of it?"
                assert all((PAGES.parent / own).is_dir() for own in tests), block.said


def test_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(SystemExit):
        parse_command("torchrun --nnodes 2 -m evenflow train --confg job.toml")


def test_all_commands_are_shown() -> None:
    text = "\n".join(command for page in page_order() for block in blocks_of(page) for command in block.commands)
    missing = [name for name in COMMANDS if f"evenflow {name}" not in text]
    assert missing == ["demo"]  # minutes, and shown by the README
