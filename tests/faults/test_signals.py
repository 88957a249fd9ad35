"""SIGTERM and SIGINT while a run starts, steps, evaluates and saves: saved, stopped, resumed to the same weights."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
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
PAUSED_STEP = 3  # that all of them are in, or come after
STEPS = 40
NOISE = 3  # times as long as another run's start or save, on a machine that others share


class Sends(Hears):
    """Sends the run a signal, and notes which step was under way."""

    def __init__(self, number: signal.Signals, at_start: bool) -> None:
        super().__init__()
        self.number, self.at_start = number, at_start
        self.sent_s = 0.0
        self.under_way = 0
        self.written_s: list[float] = []  # by each save beside the steps

    def said(self, text: str) -> None:
        super().said(text)
        if self.at_start and not self.sent_s:
            self.send()

    def saved(self, checkpoint: Path, write_s: float, hash_s: float) -> None:
        super().saved(checkpoint, write_s, hash_s)
        self.written_s.append(write_s + hash_s)

    def send(self) -> None:
        self.under_way = max((step for _, step in self.steps), default=0) + 1
        self.sent_s = time.monotonic()
        os.kill(os.getpid(), self.number)

    def send_once(self, happened: Path) -> None:
        """From a thread: as soon as a rank has begun to pause."""
        while not happened.exists():
            time.sleep(0.005)
        self.send()


@dataclass(frozen=True)
class Quiet:
    """The run that no signal comes to.

    Attributes:
        job: what it trains.
        start_s: seconds until its first step was done.
        save_s: seconds from its last step until all was saved and its ranks were gone.
    """

    job: Job
    start_s: float
    save_s: float


@pytest.fixture(scope="module")
def quiet(whole: tuple[Job, RunResult], tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    out = tmp_path_factory.mktemp("signals") / "quiet"
    job, hears = replace(whole[0], out=out, steps=STEPS, eval_every=3, eval_share=0.05), Hears()
    began = time.time()
    evenflow.train(job, hears)
    return Quiet(job, hears.steps[0][0] - began, time.time() - hears.steps[-1][0])


def check_stops(
    quiet: Quiet, faults: Faults, out: Path, moment: str, number: signal.Signals, code: int
) -> tuple[float, float]:
    """Send a signal at a moment; returns the seconds until the run had stopped, and how many its own steps allow."""
    job = replace(quiet.job, out=out)
    sends = Sends(number, at_start=moment == "start")
    if moment in MOMENTS:
        faults.plan(0, *MOMENTS[moment], "pause")
        happened = faults.file.with_name("fault.at")
        threading.Thread(target=sends.send_once, args=(happened,), daemon=True).start()
    with pytest.raises(evenflow.StoppedError) as stopped:
        evenflow.train(job, sends)
    took_s = time.monotonic() - sends.sent_s
    assert stopped.value.exit_code == code
    if moment == "start":
        assert str(stopped.value) == f"stopped by {number.name} before the first step"
        assert not sends.steps
        assert not job.out.exists()
        return took_s, NOISE * quiet.start_s
    assert not alive(pids_of(job.out))
    last = max(step for _, step in sends.steps)
    # The step under way, or the next one where its sum was made already; steps go on beside a save, up to the next.
    assert PAUSED_STEP <= last <= (sends.under_way + SAVE_EVERY if moment == "save" else PAUSED_STEP) + 1
    assert f"after step {last} of {STEPS}" in str(stopped.value)
    assert (job.out / "checkpoints" / f"step-{last:08d}").is_dir()
    step_s = max(after - before for (before, _), (after, _) in pairwise(sends.steps))  # what paused it included
    under_way_s = max(sends.written_s, default=0.0)  # a save that is being written goes before the last one
    return took_s, 2 * step_s + under_way_s + NOISE * quiet.save_s


CODES = ((signal.SIGTERM, 143), (signal.SIGINT, 130))
# Each moment and each signal; in CI SIGINT comes once here, and once to a real command in test_faults.py.
IN_CI = {("start", signal.SIGINT), *((moment, signal.SIGTERM) for moment in MOMENTS)}


@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [
        pytest.param(moment, number, code, marks=() if (moment, number) in IN_CI else pytest.mark.full)
        for moment in ("start", *MOMENTS)
        for number, code in CODES
    ],
)
def test_a_signal_saves_and_stops_within_a_step_and_a_save(
    quiet: Quiet, faults: Faults, tmp_path: Path, moment: str, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    took_s, allowed_s = check_stops(quiet, faults, out, moment, number, code)
    assert took_s <= allowed_s
    if number == signal.SIGTERM and moment != "start":  # what is saved does not depend on which of them it was
        evenflow.train(replace(quiet.job, out=out, resume=True))
        for part in (f"checkpoints/step-{STEPS:08d}", "model"):
            one, other = tensors_of(out / part), tensors_of(quiet.job.out / part)
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one), f"{part} differs"


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_every_signal_at_every_moment(
    quiet: Quiet, faults: Faults, tmp_path: Path, report: Callable[..., None]
) -> None:
    took: dict[str, list[tuple[float, float]]] = {}
    for attempt in range(3):
        for moment in ("start", *MOMENTS):
            for number, code in CODES:
                out = tmp_path / f"{moment}-{number.name}-{attempt}"
                took.setdefault(moment, []).append(check_stops(quiet, faults, out, moment, number, code))
    for moment, found in took.items():
        report(f"signal in {moment}: stopped", [seconds for seconds, _ in found])
    ratios = [seconds / allowed for found in took.values() for seconds, allowed in found]
    report("signals: of the seconds that a step and a save allow", [100 * own for own in ratios], "%", 0)
    assert max(ratios) <= 1


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
