"""Why: people edit these files; whatever stands in one place of one, a reader works on it or says what is wrong there.

Every key of a good file gets every value that is known to hurt, one at a time. What a reader then lets through goes
through the commands, whose figures must be numbers.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from evenflow.cli import main
from evenflow.errors import EvenflowError, ImpossibleError, InputError
from evenflow.files import (
    load_metrics,
    load_plan,
    load_profile,
    load_ranks,
    load_timelines,
    metrics_line,
    plan_json,
    profile_json,
    save_plan,
    save_timelines,
)
from evenflow.search import make_plan, reschedule
from evenflow.spec import Batch, Cluster, Device
from tests.files.mutations import places
from tests.files.samples import sample_metrics, sample_model, sample_plan, sample_profile, sample_timelines

LITERALS = (
    "0", "1", "-1", "0.5", "1e-300", "5e-324", "1e9", "1e13", "1e308", "-1e308", "1e999", "NaN", "-Infinity",
    "65", "1000000000", "1" + "0" * 30, "9" * 5000, "-" + "9" * 5000,
    '""', '"1f1b"', '"0F0"', '"99999999999999999999F0"', '"\\u001b[2J\\n"', "null", "[]", "[0]",
    "[[1e308]]", "{}", "true",
)  # fmt: skip
MARK = "\N{SNOWMAN}"


def edited(data: Any, path: tuple[str | int, ...], literal: str) -> str:
    """The file's text with one value replaced; a literal, since some are no value that Python would write."""
    if not path:
        return literal
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = MARK
    return json.dumps(data, ensure_ascii=False).replace(f'"{MARK}"', literal)


def one_line(error: EvenflowError, names: str = "") -> None:
    text = str(error)
    assert text.isprintable(), text
    assert names in text
    assert len(text) < 1200, text


def survivors(
    data: Any, file: Path, load: Callable[[Path], object], line: bool = False, every: int = 1
) -> Iterator[str]:
    """Edits that the reader takes; of the others each must be refused in one line that names the file.

    Of all of them each `every`-th is tried, a prime, so that the literals take turns at every kind of place.
    """
    for number, (path, literal) in enumerate(product([(), *(path for path, _ in places(data))], LITERALS)):
        if number % every:
            continue
        text = edited(data, path, literal)
        file.write_text(text + "\n" if line else text)
        try:
            load(file)
        except InputError as error:
            one_line(error, str(file))
        else:
            yield f"{'.'.join(map(str, path))} = {literal[:40]}"


def some_or_all(some: int) -> pytest.MarkDecorator:
    """Each `some`-th edit in CI, all of them in the full grid, which takes minutes."""
    return pytest.mark.parametrize("every", [some, pytest.param(1, marks=pytest.mark.full)])


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} in the output")


def run(what: str, *arguments: object) -> None:
    """A command: it works, with finite figures, or leaves with a line and 2, or 4 where nothing fits."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    if code == 0 and "--json" in arguments:
        json.loads(out.getvalue(), parse_constant=no_constant)
    elif code == 0:
        words = out.getvalue().replace("(", " ").replace("%", " ").split()
        assert not {"nan", "inf", "-inf", "+nan", "+inf"} & set(words), (what, out.getvalue())
    else:
        assert code in (InputError.exit_code, ImpossibleError.exit_code), (what, err.getvalue())
        assert err.getvalue().count("\n") == 1, (what, err.getvalue())
        assert out.getvalue() == ""


def small_plan(schedule: str) -> Any:
    """Two ranks, two microbatches, four layers: every kind of place, and quick to simulate."""
    plan = sample_plan(2, 2, 2)
    return plan_json(plan if schedule == plan.schedule else reschedule(plan, schedule))


@pytest.mark.timeout(1800)
@some_or_all(31)
@pytest.mark.parametrize("schedule", ["1f1b", "auto"])
def test_any_edit_of_a_plan(tmp_path: Path, schedule: str, every: int) -> None:
    file = tmp_path / "plan.json"
    for number, what in enumerate(survivors(small_plan(schedule), file, load_plan, every=every)):
        run(what, "simulate", file, "--json")
        # The slower ones take turns, out of step with literals and places: together they see every kind of either.
        match number % 11:
            case 0:
                run(what, "simulate", file, "--compare", "--json")
            case 3:
                run(what, "report", file, "--html", tmp_path / "page.html", "--trace", tmp_path / "t.json")
            case 6:
                run(what, "report", file, "--json")
            case 9:
                run(what, "simulate", file, "--schedule", "gpipe")


def test_work_that_a_float_loses_beside_the_update(tmp_path: Path) -> None:
    data, file = small_plan("1f1b"), tmp_path / "plan.json"
    for part in (*data["stages"], *data["layers"]):
        part |= dict.fromkeys(("forward_s", "backward_s", "input_s", "weight_s"), 1e-9)
    data["ranks"][1]["optimizer_s"] = 1e9  # so rank 0 begins its step a billion seconds before zero
    data["link"]["latency_s"] = 3e8
    file.write_text(json.dumps(data))
    run("lost", "simulate", file, "--json")
    run("lost", "simulate", file, "--compare", "--json")


@pytest.mark.timeout(1800)
@some_or_all(13)
def test_any_edit_of_a_profile(tmp_path: Path, every: int) -> None:
    model, file = sample_model(2), tmp_path / "profile.json"
    device = Device("cpu", 8 * 2**30, 64e9, 0.5, 2e9, 1e-4, "made up")
    cluster = Cluster("local", device, 2, 1, 2, is_local=True)
    for _ in survivors(profile_json(sample_profile(model)), file, load_profile, every=every):
        costs = load_profile(file).costs()
        try:
            data = plan_json(make_plan(model, cluster, Batch(4, 2, 128), costs))
        except EvenflowError as error:
            one_line(error)
        else:
            json.dumps(data, allow_nan=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder, as far as `report` reads it."""
    plan = sample_plan(2, 2, 2)
    save_plan(plan, tmp_path / "plan.json")
    save_timelines(tmp_path / "timeline.json", *sample_timelines(plan), 7)
    lines = [metrics_line(metrics) + "\n" for metrics in sample_metrics(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    return tmp_path


@pytest.mark.timeout(1800)
@some_or_all(31)
def test_any_edit_of_a_timeline(folder: Path, every: int) -> None:
    file = folder / "timeline.json"
    data = json.loads(file.read_text())
    for number, what in enumerate(survivors(data, file, load_timelines, every=every)):
        if number % 5 == 0:
            run(what, "report", folder, "--json")
        elif number % 5 == 2:
            run(
                what,
                "report",
                folder,
                "--html",
                folder / "page.html",
                "--svg",
                folder / "p.svg",
                "--trace",
                folder / "t.json",
            )


@pytest.mark.timeout(1800)
@some_or_all(7)
def test_any_edit_of_metrics(folder: Path, every: int) -> None:
    file = folder / "metrics.jsonl"
    lines = file.read_text()
    step = json.loads(lines.splitlines()[0])
    edits = folder / "edits.jsonl"
    for what in survivors(step, edits, load_metrics, line=True, every=every):
        file.write_text(lines + edits.read_text())
        run(what, "report", folder, "--html", folder / "page.html")


def test_any_edit_of_ranks(tmp_path: Path) -> None:
    data = [{"rank": 0, "pid": 4242, "host": "here"}, {"rank": 1, "pid": 4243, "host": "there"}]
    assert list(survivors(data, tmp_path / "ranks.json", load_ranks))
