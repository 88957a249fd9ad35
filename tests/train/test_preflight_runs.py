"""Why: what would fail hours later is refused by `train` itself before its first step, with figure and remedy."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evenflow.cli import main
from evenflow.errors import ImpossibleError
from evenflow.files import load_plan
from evenflow.train.patience import first_patience, gloo_timeout_s, later_patience
from evenflow.train.preflight import descriptors

SHAPE = ("--global-batch-size", "8", "--micro-batch-size", "2", "--seq-length", "32")


@pytest.fixture
def plan(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A plan of two ranks, so that nothing has to be profiled."""
    file = tmp_path / "plan.json"
    assert main(["plan", str(make_model()), *SHAPE, "--pp", "2", "--out", str(file)]) == 0
    return file


@pytest.fixture
def command(make_model: Callable[..., Path], text: Path, plan: Path) -> Callable[[Path], list[str]]:
    def train(out: Path) -> list[str]:
        given = ["--data", str(text), "--out", str(out), "--plan", str(plan), "--steps", "2", "--no-check"]
        return ["train", str(make_model()), *given]

    return train


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, of which a checkpoint of the tiny model takes more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def refusal(said: str) -> str:
    return next(line for line in said.splitlines() if line.startswith("evenflow train: "))


def test_a_disk_that_has_no_room_for_a_checkpoint_is_refused_before_the_first_step(
    command: Callable[[Path], list[str]], small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command(small_disk / "run")) == ImpossibleError.exit_code
    said = capfd.readouterr().err
    assert "run has 1." in refusal(said)
    assert "MiB free; a checkpoint takes " in refusal(said)
    assert "more, or another disk, would do" in refusal(said)
    assert "step 1/" not in said
    assert not (small_disk / "run").exists()


def test_a_plan_that_needs_more_memory_than_there_is_is_refused_before_the_first_step(
    command: Callable[[Path], list[str]], plan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(plan.read_text())
    for rank in data["ranks"]:
        rank["peak_bytes"] = 2**50
    plan.write_text(json.dumps(data))
    assert main(command(tmp_path / "run")) == ImpossibleError.exit_code
    said = capfd.readouterr().err
    assert "the plan needs 2097152 GiB in 2 processes, and this host has " in refusal(said)
    assert "GiB available; --recompute full, a smaller --micro-batch-size, " in refusal(said)
    assert "step 1/" not in said
    assert not (tmp_path / "run").exists()


def test_too_few_descriptors_are_refused_before_the_first_step(
    command: Callable[[Path], list[str]], plan: Path, tmp_path: Path
) -> None:
    needed = descriptors(load_plan(plan))
    few = needed - 3

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))

    ran = subprocess.run(
        [sys.executable, "-m", "evenflow", *command(tmp_path / "run")],
        capture_output=True, text=True, preexec_fn=limit, timeout=200,
    )  # fmt: skip
    assert ran.returncode == ImpossibleError.exit_code, ran.stderr
    assert f"opens up to {needed} files and connections, and {few} is the limit" in refusal(ran.stderr)
    assert f"`ulimit -n {needed}` before it would do" in refusal(ran.stderr)
    assert "step 1/" not in ran.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("predicted_s", "first_s", "silent_s", "stuck_s", "gloo_first_s", "gloo_s"),
    [
        # So short a step that the least of each holds: a page of a slow disk takes that long.
        (0.01, 120, 30, 30, 120, 60),
        (60, 6000, 180, 1200, 6000, 2400),
    ],
)
def test_how_long_ranks_wait_follows_the_plan_and_is_longer_for_the_first_step(
    predicted_s: float, first_s: float, silent_s: float, stuck_s: float, gloo_first_s: float, gloo_s: float
) -> None:
    first, later = first_patience(predicted_s), later_patience(predicted_s, [predicted_s] * 20)
    assert (first.stuck_s, later.stuck_s) == (first_s, stuck_s)
    assert first.silent_s == later.silent_s == silent_s
    assert gloo_timeout_s(predicted_s, None) == gloo_first_s
    assert gloo_timeout_s(predicted_s, predicted_s) == gloo_s
    assert gloo_timeout_s(predicted_s, predicted_s) > later.stuck_s  # the watch speaks first, and names who is lost
    assert gloo_timeout_s(predicted_s, predicted_s) < gloo_timeout_s(predicted_s, None)
    assert later.stuck_s < first.stuck_s


def test_a_run_slower_than_its_plan_is_waited_for_as_long_as_its_own_steps_say() -> None:
    assert later_patience(0.01, [60.0] * 20).stuck_s == 20 * 60
    assert gloo_timeout_s(0.01, 60.0) == 40 * 60
