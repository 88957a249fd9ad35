"""SIGTERM and SIGINT while a run evaluates and while it saves: saved, stopped, and resumed to the same weights."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import evenflow
from evenflow.files import StepMetrics
from evenflow.train import Job, RunResult
from tests.faults.conftest import Hears, same_weights
from tests.faults.injection import Faults, alive, pids_of


@pytest.mark.parametrize(
    ("point", "number", "code"), [("evaluation", signal.SIGTERM, 143), ("save", signal.SIGINT, 130)]
)
def test_a_signal_there_saves_and_stops(
    whole: tuple[Job, RunResult], faults: Faults, tmp_path: Path, point: str, number: signal.Signals, code: int
) -> None:
    job = replace(whole[0], out=tmp_path / "run", eval_every=3, eval_share=0.05)
    faults.plan(0, point, 1, "slow")  # so that the signal comes in the middle of it

    def ask() -> None:
        while not faults.file.with_name("fault.at").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=ask, daemon=True).start()
    hears = Hears()
    with pytest.raises(evenflow.StoppedError) as stopped:
        evenflow.train(job, hears)
    assert stopped.value.exit_code == code
    last = max(step for _, step in hears.steps)
    assert 3 <= last < job.steps
    assert f"after step {last} of {job.steps}" in str(stopped.value)
    assert not alive(pids_of(job.out))
    evenflow.train(replace(job, resume=True))
    evenflow.train(replace(job, out=tmp_path / "quiet"))
    assert same_weights(job.out, tmp_path / "quiet")


def test_a_signal_to_every_process_is_one_to_the_run(whole: tuple[Job, RunResult], tmp_path: Path) -> None:
    """As when a job's control group is asked to end: the ranks hear it too, and leave the stopping to the run."""
    job = replace(whole[0], out=tmp_path / "run", steps=10_000, plan=None)

    class Ends(Hears):
        def stepped(self, metrics: StepMetrics, steps: int) -> None:
            super().stepped(metrics, steps)
            if metrics.step == 4:
                for pid in (*pids_of(job.out), os.getpid()):
                    os.kill(pid, signal.SIGTERM)

    with pytest.raises(evenflow.StoppedError, match="stopped by SIGTERM after step"):
        evenflow.train(job, Ends())
