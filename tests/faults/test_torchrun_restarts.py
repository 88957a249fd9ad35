"""Workers of torchrun that are killed, by real signals: started again, and nothing of it is in the weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from evenflow.files import load_metrics
from evenflow.train import Job, RunResult
from tests.faults.conftest import SAVE_EVERY, STEPS, same_weights
from tests.faults.injection import Faults
from tests.faults.test_faults import family, gone

Whole = tuple[Job, RunResult]
Start = Callable[..., "subprocess.Popen[str]"]
WAIT_S = 150
# Passes of a rank's forward, of which each step has four: in step 9, when that after step 6 is saved, and in step 2.
STEP_9, STEP_2 = 34, 6


@pytest.fixture
def start(whole: Whole, faults: Faults) -> Iterator[Start]:
    """Start the small job under torchrun, two workers on this host; nothing of it is left at the end."""
    started: list[subprocess.Popen[str]] = []
    path = os.pathsep.join([str(faults.file.parent / "injected"), *filter(None, sys.path)])

    def run(out: Path, again: int = 3, **options: int) -> subprocess.Popen[str]:
        job = whole[0]
        named = {"data": job.data, "out": out, "plan": job.plan, "lr": job.learning_rate, "steps": STEPS}
        named |= {"save_every": SAVE_EVERY, **options}
        given = [part for name, value in named.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", f"--max-restarts={again}"]
        process = subprocess.Popen(
            [sys.executable, *torchrun, "-m", "evenflow", "train", job.model, "--no-check", *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with suppress(psutil.NoSuchProcess):
            for own in family(process):
                with suppress(psutil.NoSuchProcess):
                    own.kill()
        process.wait()


def worker(torchrun: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The worker of a rank."""
    children = psutil.Process(torchrun.pid).children()
    return next(own for own in children if own.environ().get("RANK") == str(rank))


def happened(faults: Faults, torchrun: subprocess.Popen[str]) -> None:
    """Wait until the fault that was planned has."""
    deadline = time.monotonic() + WAIT_S
    while not faults.file.with_name("fault.at").exists():
        assert torchrun.poll() is None, torchrun.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps_of(out: Path) -> list[int]:
    """The steps that a run has written down."""
    return [own.step for own in load_metrics(out / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "call", "goes_on"),
    [
        (1, STEP_9, "goes on from its newest checkpoint"),
        pytest.param(0, STEP_2, "begins anew, as nothing was saved yet", marks=pytest.mark.full),
    ],
    ids=["one that serves", "the one that leads"],
)
def test_a_killed_worker_is_started_again_and_the_run_ends_as_if_nothing_had_been(
    whole: Whole, faults: Faults, start: Start, tmp_path: Path, rank: int, call: int, goes_on: str
) -> None:
    """While a rank hangs, so that the run is where it is when the worker is killed."""
    out = tmp_path / "run"
    faults.plan(1, "forward", call, "hang")
    torchrun = start(out)
    happened(faults, torchrun)
    before = family(torchrun)[1:]
    worker(torchrun, rank).kill()
    assert gone(before, 60)
    said = "\n".join(torchrun.communicate(timeout=WAIT_S))
    assert torchrun.returncode == 0, said
    assert said.count("restart by torchrun: ") == 1, said
    assert goes_on in " ".join(said.split())
    assert steps_of(out) == list(range(1, STEPS + 1))
    assert [own.loss for own in load_metrics(out / "metrics.jsonl")] == [own.loss for own in whole[1].metrics]
    assert same_weights(out, whole[0].out)


@pytest.mark.full
@pytest.mark.slow
def test_what_would_come_again_ends_the_run_at_once(faults: Faults, start: Start, tmp_path: Path) -> None:
    """A petabyte is asked for once; a run that went on would not ask for it again, and so be seen to have gone on."""
    out = tmp_path / "run"
    faults.plan(1, "forward", STEP_9, "memory")
    torchrun = start(out, again=2)
    everyone: list[psutil.Process] = []
    happened(faults, torchrun)
    with suppress(psutil.NoSuchProcess):
        everyone = family(torchrun)
    _, errors = torchrun.communicate(timeout=WAIT_S)
    assert torchrun.returncode == 1
    ours = [line for line in errors.splitlines() if line.startswith("evenflow train: ")]
    assert "out of memory, at 1F1" in ours[0]
    again = f"evenflow train: nothing is left to start again: {ours[0].partition(': ')[2]}"
    assert ours[1:] == [again] * 2
    assert "exitcode  : 3 " in errors
    assert "restart by torchrun" not in errors
    assert max(steps_of(out)) < 9
    assert gone(everyone)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("asked", ["torchrun", "a worker"])
def test_a_run_that_is_asked_to_stop_saves_and_stays_stopped(
    faults: Faults, start: Start, tmp_path: Path, asked: str
) -> None:
    """By what Slurm signals, which is torchrun, as by hand; its workers leave with 143."""
    out = tmp_path / "run"
    faults.plan(1, "forward", STEP_9, "pause")
    torchrun = start(out, again=1, steps=100_000)
    happened(faults, torchrun)
    everyone = family(torchrun)
    os.kill(torchrun.pid if asked == "torchrun" else worker(torchrun, 1).pid, signal.SIGTERM)
    _, errors = torchrun.communicate(timeout=WAIT_S)
    assert torchrun.returncode != 0
    assert "evenflow train: stopped by SIGTERM after step " in errors
    assert "restart by torchrun" not in errors
    last = steps_of(out)[-1]
    assert (out / "checkpoints" / f"step-{last:08d}").is_dir()
    assert f"after step {last} of 100000" in errors
    assert gone(everyone)
