"""Faults of all kinds at random moments, for as long as one likes: no hang, and nothing of it in the weights."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import evenflow
from evenflow.files import StepMetrics, load_metrics
from evenflow.train import Job, RunResult
from tests.faults.conftest import Hears
from tests.faults.injection import Faults, alive, pids_of
from tests.train.test_resume import tensors_of

pytestmark = pytest.mark.alone  # who is lost or slow is told by seconds
KINDS = ("kill", "stop", "disk", "slow")
BAD_S = 3.0  # how long a disk fails, or a rank is slowed


class Trouble(threading.Thread):
    """Does something to a run every so many seconds, and asks it to stop when the time is over."""

    def __init__(self, run: Path, faults: Faults, seconds: float, every_s: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.out, self.faults, self.seconds, self.every_s = run, faults, seconds, every_s
        self.chance = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.began = threading.Event()

    def run(self) -> None:
        self.began.wait()
        end = time.monotonic() + self.seconds
        kinds = list(KINDS)
        while time.monotonic() + self.every_s < end:
            time.sleep(self.every_s * self.chance.uniform(0.7, 1.3))
            if not self.done.total() % len(KINDS):
                self.chance.shuffle(kinds)  # all kinds come, in random order
            kind = kinds[self.done.total() % len(KINDS)]
            with suppress(OSError, ValueError, ProcessLookupError):  # the run is just starting again
                self.do(kind, pids_of(self.out)[self.chance.randrange(2)])
            self.done[kind] += 1
        time.sleep(max(end - time.monotonic(), 0))
        os.kill(os.getpid(), signal.SIGTERM)

    def do(self, kind: str, pid: int) -> None:
        match kind:
            case "kill":
                os.kill(pid, signal.SIGKILL)
            case "stop":
                os.kill(pid, signal.SIGSTOP)
            case "disk":
                self.faults.disk(self.chance.choice([errno.ENOSPC, errno.EROFS, errno.EIO]))
                time.sleep(BAD_S)
                self.faults.disk(None)
            case "slow":
                until = time.monotonic() + BAD_S
                while time.monotonic() < until:
                    ran = time.monotonic()
                    time.sleep(0.005)
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(2 * (time.monotonic() - ran))
                    os.kill(pid, signal.SIGCONT)


class Begins(Hears):
    def __init__(self, began: threading.Event) -> None:
        super().__init__()
        self.began = began

    def stepped(self, metrics: StepMetrics, steps: int) -> None:
        super().stepped(metrics, steps)
        self.began.set()


def soak(whole: tuple[Job, RunResult], faults: Faults, out: Path, seconds: float, every_s: float) -> tuple[float, str]:
    """A run in trouble against one without; returns its goodput, by the steps of the latter, and what happened."""
    job = replace(whole[0], out=out, steps=10**6, save_every=20, restarts=10**6)
    trouble = Trouble(out, faults, seconds, every_s, seed=11)
    hears = Begins(trouble.began)
    trouble.start()
    with pytest.raises(evenflow.StoppedError) as stopped:
        evenflow.train(job, hears)
    assert stopped.value.exit_code == 143
    wall_s = time.time() - hears.steps[0][0]
    metrics = load_metrics(out / "metrics.jsonl")
    last = metrics[-1].step
    assert [own.step for own in metrics] == list(range(1, last + 1))
    assert not alive(pids_of(out))
    quiet = out.with_name("quiet")
    evenflow.train(replace(job, out=quiet, stop_at=last, save_every=None))
    untroubled = load_metrics(quiet / "metrics.jsonl")
    # What the steps take where nothing happens: a step in which a rank was slowed or stopped is not all good.
    goodput = sum(own.step_s for own in untroubled[1:]) / wall_s
    for part in (f"checkpoints/step-{last:08d}", "model"):
        one, other = tensors_of(out / part), tensors_of(quiet / part)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), f"{part} differs"
    assert [own.loss for own in metrics] == [own.loss for own in untroubled]
    restarts = len(hears.starting("restart "))
    assert restarts == len(hears.starting("fault: "))
    said = ", ".join(f"{number} {kind}" for kind, number in trouble.done.items())
    return goodput, f"{seconds:.0f} s, {last} steps, faults: {said}; {restarts} restarts; goodput {goodput:.1%}"


def test_a_few_faults_one_after_another(whole: tuple[Job, RunResult], faults: Faults, tmp_path: Path) -> None:
    _, said = soak(whole, faults, tmp_path / "run", seconds=21, every_s=5)
    assert "restarts" in said


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_fault_every_15_seconds_for_10_minutes(
    whole: tuple[Job, RunResult], faults: Faults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goodput, said = soak(whole, faults, tmp_path / "run", seconds=600, every_s=15)
    with capsys.disabled():
        print(f"\nsoak: {said}")
    assert goodput >= 0.7
