"""Why: two commands at once are everyday: in two folders both train, in one the second is told who trains there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import evenflow
from evenflow.files import load_metrics
from evenflow.train import Job, RunResult
from evenflow.train.lock import LOCK
from tests.faults.conftest import STEPS, Hears
from tests.faults.injection import pids_of
from tests.faults.test_raising_rank import latest_end

Start = Callable[..., "subprocess.Popen[str]"]
WAIT_S = 150


@pytest.fixture
def start(whole: tuple[Job, RunResult]) -> Iterator[Start]:
    """Start `evenflow train` on the small job in a folder; nothing of it is left at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(out: Path, **options: int) -> subprocess.Popen[str]:
        job = whole[0]
        named = {"data": job.data, "out": out, "plan": job.plan, "lr": job.learning_rate, "steps": STEPS, **options}
        given = [part for name, value in named.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        command = [sys.executable, "-m", "evenflow", "train", job.model, "--no-check", *given]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def await_file(folder: Path, name: str, process: subprocess.Popen[str], number: int = 1) -> None:
    """Wait for so many files of a name to be there; of a pattern, since old checkpoints are removed again."""
    deadline = time.monotonic() + WAIT_S
    while len([*folder.glob(name)]) < number:
        assert time.monotonic() < deadline, f"no {name} in {folder} in time"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.mark.slow
def test_two_runs_at_once_train_in_two_folders_and_not_in_one(
    whole: tuple[Job, RunResult], start: Start, tmp_path: Path
) -> None:
    first, second = start(tmp_path / "first", steps=100_000), start(tmp_path / "second")
    await_file(tmp_path / "first", LOCK, first)
    intruder = start(tmp_path / "first")
    said = intruder.communicate(timeout=WAIT_S)[1]
    assert intruder.returncode == 2, said
    assert f"first is in use: process {first.pid} on " in said
    assert "trains there; another --out, or waiting for its end, would do" in said
    said = second.communicate(timeout=WAIT_S)[1]
    assert second.returncode == 0, said
    ours, theirs = load_metrics(tmp_path / "second" / "metrics.jsonl"), load_metrics(whole[0].out / "metrics.jsonl")
    assert [own.loss for own in ours] == [own.loss for own in theirs]
    await_file(tmp_path / "first", "metrics.jsonl", first)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=WAIT_S)[1]
    assert first.returncode == 143, said
    assert len(load_metrics(tmp_path / "first" / "metrics.jsonl")) >= 1


@pytest.mark.slow
def test_a_command_that_was_killed_is_gone_on_with_and_what_it_left_is_told(
    whole: tuple[Job, RunResult], start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    killed = start(run, steps=100_000, save_every=3)
    await_file(run / "checkpoints", "step-*", killed, 2)
    ranks = pids_of(run)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    latest_end(ranks, 10)  # no rank outlives the command
    assert (run / LOCK).exists()
    newest = max(int(folder.name.removeprefix("step-")) for folder in (run / "checkpoints").glob("step-*"))
    hears = Hears()
    evenflow.train(replace(whole[0], out=run, steps=100_000, resume=True, save_every=3, stop_at=newest + 2), hears)
    note = f"note: process {killed.pid} on "
    assert len(hears.starting(note)) == 1, hears.lines
    assert f"ran in {run} and was killed; what it left unfinished is dropped" in hears.starting(note)[0]
    assert [step for _, step in hears.steps] == [newest + 1, newest + 2]
    assert [own.step for own in load_metrics(run / "metrics.jsonl")] == list(range(1, newest + 3))
    assert not (run / LOCK).exists()
