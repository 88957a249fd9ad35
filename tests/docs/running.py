"""Runs a command of the documentation as a reader would, or holds its options against what the command takes."""

from __future__ import annotations

import importlib
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from evenflow.cli import COMMANDS, OneLineParser, main


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left with, and what it wrote."""

    code: int
    out: str
    err: str


def evenflow_words(words: list[str]) -> list[str] | None:
    """The arguments of evenflow in a command line; None where it has none."""
    for index, word in enumerate(words):
        if Path(word).name == "evenflow" and (index == 0 or words[index - 1] == "-m"):
            return words[index + 1 :]
    return None


def parse_command(command: str) -> None:
    """Hold the options of a command against those that evenflow takes; it leaves the process where one is wrong."""
    words = evenflow_words(shlex.split(command))
    if words is None:
        return
    assert words[0] in COMMANDS, command
    module = importlib.import_module(f"evenflow.cli.{words[0]}")
    parser = OneLineParser(prog=words[0])
    module.add_arguments(parser)
    parser.parse_args(words[1:])


def run_command(command: str, capfd: pytest.CaptureFixture[str]) -> Ended:
    """Run it: evenflow's own in this process, so that what is imported once serves all; others and pipes in a shell."""
    words = shlex.split(command)
    arguments = None if "|" in words else evenflow_words(words)
    if arguments is None:
        ended = subprocess.run(command, shell=True, capture_output=True, text=True)
        return Ended(ended.returncode, ended.stdout, ended.stderr)
    target = Path(arguments.pop()) if len(arguments) > 1 and arguments[-2] == ">" else None
    if target is not None:
        arguments.pop()
    capfd.readouterr()
    code = main(arguments)
    said = capfd.readouterr()
    if target is not None:
        target.write_text(said.out)
    return Ended(code, said.out, said.err)
