"""Every command of the documentation is run, in the order of the pages; what cannot run here is parsed."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from evenflow.cli import COMMANDS, OneLineParser, main
from evenflow.program import SCHEDULES
from tests.docs.blocks import PAGES, Block, blocks_of, page_order


def _evenflow(words: list[str]) -> list[str] | None:
    """The arguments of evenflow in a command line; None where it has none."""
    for index, word in enumerate(words):
        if word == "evenflow" and (index == 0 or words[index - 1] == "-m"):
            return words[index + 1 :]
    return None


def _parse(command: str) -> None:
    words = _evenflow(shlex.split(command))
    if words is None:
        return
    assert words[0] in COMMANDS, command
    module = importlib.import_module(f"evenflow.cli.{words[0]}")
    parser = OneLineParser(prog=words[0])
    module.add_arguments(parser)
    parser.parse_args(words[1:])


def _run(command: str, block: Block, capfd: pytest.CaptureFixture[str]) -> str:
    """What it writes to standard output."""
    words = shlex.split(command)
    arguments = _evenflow(words)
    where = f"{block.page}: {command}"
    if arguments is None:
        ended = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert ended.returncode == block.exit_code, f"{where}\n{ended.stderr}"
        return ended.stdout
    target = Path(arguments.pop()) if len(arguments) > 1 and arguments[-2] == ">" else None
    if target is not None:
        arguments.pop()
    capfd.readouterr()
    code = main(arguments)
    said = capfd.readouterr()
    assert code == block.exit_code, f"{where}\n{said.err[-2000:]}"
    if target is not None:
        target.write_text(said.out)
    return said.out


def _lines(text: str) -> list[str]:
    """What is the same each time: without the seconds that a search took."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    return [line for line in lines if not line.startswith("search ")]


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
            printed = ""
            for block in blocks_of(page):
                if block.is_output:
                    assert _lines(printed) == _lines(block.body), page.name
                if not block.is_run:
                    continue
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


def test_what_is_not_run_is_parsed() -> None:
    left = [block for page in page_order() for block in blocks_of(page) if not block.is_run]
    assert left
    for block in left:
        for command in block.commands:
            _parse(command)


def test_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(SystemExit):
        _parse("torchrun --nnodes 2 -m evenflow train --confg job.toml")


def test_all_commands_are_shown() -> None:
    text = "\n".join(command for page in page_order() for block in blocks_of(page) for command in block.commands)
    missing = [name for name in COMMANDS if f"evenflow {name}" not in text]
    assert missing == ["demo"]  # minutes, and shown by the README
