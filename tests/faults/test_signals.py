"""SIGTERM and SIGINT while a run starts, steps, evaluates and saves: saved, stopped, resumed to the same weights."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import evenflow
from evenflow.files import StepMetrics
from evenflow.train import Job, RunResult
from tests.faults.conftest import SAVE_EVERY, Hears
from tests.faults.injection import Faults, alive, pids_of
from tests.train.test_resume import tensors_of

pytestmark = pytest.mark.alone  # a run has to be saved within seconds
# Where a rank pauses, so that the signal comes in the middle of it: its point, and the how manieth pass of that.
MOMENTS = {"step": ("forward", 9), "evaluation": ("evaluation", 1), "save": ("save", 1)}
STEPS, SAVED_S = 40, 20.0


class Sends(Hears):
    """Sends the run a signal, and notes which step was under way."""

    def __init__(self, number: signal.Signals, at_start: bool) -> None:
        super().__init__()
        self.number, self.at_start = number, at_start
        self.sent_s = 0.0
        self.under_way = 0

    def said(self, text: str) -> None:
        super().said(text)
        if self.at_start and not self.sent_s:
            self.send()

    def send(self) -> None:
        self.under_way = max((step for _, step in self.steps), default=0) + 1
        self.sent_s = time.monotonic()
        os.kill(os.getpid(), self.number)

    def send_once(self, happened: Path) -> None:
        """From a thread: as soon as a rank has begun to pause."""
        while not happened.exists():
            time.sleep(0.005)
        self.send()


@pytest.fixture(scope="module")
def quiet(whole: tuple[Job, RunResult], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The run that no signal comes to."""
    out = tmp_path_factory.mktemp("signals") / "quiet"
    job = replace(whole[0], out=out, steps=STEPS, eval_every=3, eval_share=0.05)
    evenflow.train(job)
    return job


# Each moment and each signal; in CI SIGINT comes once here, and once to a real command in test_faults.py.
IN_CI = {("start", signal.SIGINT), *((moment, signal.SIGTERM) for moment in MOMENTS)}


@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [
        pytest.param(moment, number, code, marks=() if (moment, number) in IN_CI else pytest.mark.full)
        for moment in ("start", *MOMENTS)
        for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130))
    ],
)
def test_a_signal_saves_and_stops_within_a_step_and_a_save(
    quiet: Job, faults: Faults, tmp_path: Path, moment: str, number: signal.Signals, code: int
) -> None:
    job = replace(quiet, out=tmp_path / "run")
    sends = Sends(number, at_start=moment == "start")
    if moment in MOMENTS:
        faults.plan(0, *MOMENTS[moment], "pause")
        happened = faults.file.with_name("fault.at")
        threading.Thread(target=sends.send_once, args=(happened,), daemon=True).start()
    with pytest.raises(evenflow.StoppedError) as stopped:
        evenflow.train(job, sends)
    assert time.monotonic() - sends.sent_s < SAVED_S
    assert stopped.value.exit_code == code
    if moment == "start":
        assert str(stopped.value) == f"stopped by {number.name} before the first step"
        assert not sends.steps
        assert not job.out.exists()
        return
    assert not alive(pids_of(job.out))
    last = max(step for _, step in sends.steps)
    # Ranks may be a step further than what was heard of them; and steps go on beside a save, up to the next one.
    assert 3 <= last <= sends.under_way + (1 + SAVE_EVERY if moment == "save" else 2)
    assert f"after step {last} of {STEPS}" in str(stopped.value)
    assert (job.out / "checkpoints" / f"step-{last:08d}").is_dir()
    if number == signal.SIGTERM:  # what is saved does not depend on which of them it was
        evenflow.train(replace(job, resume=True))
        for part in (f"checkpoints/step-{STEPS:08d}", "model"):
            one, other = tensors_of(job.out / part), tensors_of(quiet.out / part)
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one), f"{part} differs"


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
