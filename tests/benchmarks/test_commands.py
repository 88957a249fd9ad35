"""Why: a benchmark of minutes is rarely run, so that it still starts, and as its docstring says, is held here."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "measurements.md").read_text()
NAMES = sorted(set(re.findall(r"python -m benchmarks\.(\w+)", PAGE)))  # whose figures are published
DESCRIBED = ("layer_times", "fit", "predicted", "rehearsed", "planner", "published")


def documented(name: str) -> list[list[str]]:
    """The arguments of each command in a benchmark's docstring and on the page of its figures.

    Of what may be left out, all is there. A command ends where two blanks follow: what it does stands behind them.
    """
    text = f"{importlib.import_module(f'benchmarks.{name}').__doc__}\n{PAGE}"
    found = []
    for line in re.findall(rf"python -m benchmarks\.{name}\b((?: [^\s`#]+)*)", text):
        words = re.sub(r"[\[\]]", "", line).split()
        found.append([{"N": "1"}.get(word, word.partition("|")[0]) for word in words])
    return found


class Parsed(Exception):
    """Arguments were good, and nothing was run."""


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_takes_the_arguments_that_are_documented(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_known_args  # what every kind of parser ends in

    def stop(parser: argparse.ArgumentParser, *arguments: Any) -> None:
        _, unknown = parse(parser, *arguments)
        assert not unknown, f"{words}: {unknown}"
        raise Parsed

    assert set(DESCRIBED) < set(NAMES)
    module, commands = importlib.import_module(f"benchmarks.{name}"), documented(name)
    assert commands
    for words in commands:
        monkeypatch.setattr(sys, "argv", [name, *words])
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
            with pytest.raises(Parsed):
                module.main()


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_benchmark_says_what_it_does(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        importlib.import_module(f"benchmarks.{name}").main()
    assert left.value.code == 0
    assert f"python -m benchmarks.{name}" in " ".join(capsys.readouterr().out.split())


def test_published_layer_times_are_within_a_tenth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As issue 6 asks; nothing is fitted to them."""
    from benchmarks.layer_times import main

    monkeypatch.setattr(sys, "argv", ["layer_times", "--json"])
    main()
    found = json.loads(capsys.readouterr().out)
    assert len(found["rows"]) > 3
    assert found["median"] <= found["worst"] <= 0.10
    monkeypatch.setattr(sys, "argv", ["layer_times"])
    main()
    assert len(capsys.readouterr().out.splitlines()) == len(found["rows"]) + 1
