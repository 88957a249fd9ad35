"""Faults of all kinds at random moments, for as long as one likes: no hang, and nothing of it in the weights."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import evenflow
from evenflow.files import load_metrics
from evenflow.train import Job, RunResult
from tests.faults.conftest import Hears
from tests.faults.disks import may_mount, read_only
from tests.faults.injection import Faults, alive, pids_of
from tests.train.test_resume import tensors_of

pytestmark = pytest.mark.alone  # who is lost or slow is told by seconds
KINDS = ("kill", "stop", "disk", "slow")
BAD_S = 3.0  # how long a disk fails, or a rank is slowed
AGAIN_S = 0.2  # until a fault that found nobody is tried again
SETTLES_S = 60.0  # for the run to go on from the last fault, before it is asked to stop
LONGEST_STOP_S = 1.0  # of a slowed rank on a machine that gave it long: a longer one is taken for silence


class Trouble(threading.Thread):
    """Does something to a run every so many seconds, and asks it to stop when the time is over.

    Attributes:
        done: how often each kind of fault really happened: a signal that found no living rank is tried again.
        lost: the attempts, each by its ranks' process ids, that a rank was killed or stopped in.
        mounts: whether the disk is made read-only by the kernel; else writes of checkpoints fail by injection.
    """

    def __init__(self, run: Path, faults: Faults, hears: Hears, seconds: float, every_s: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.out, self.faults, self.hears, self.seconds, self.every_s = run, faults, hears, seconds, every_s
        self.chance = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.lost: set[tuple[int, ...]] = set()
        self.mounts = may_mount(run.parent)
        self.over = threading.Event()

    def run(self) -> None:
        while not self.hears.steps and not self.over.wait(0.05):
            pass
        end = time.monotonic() + self.seconds
        kinds, wait_s = list(KINDS), self._some_time()
        while time.monotonic() + max(wait_s, self.every_s) < end and not self.over.wait(wait_s):
            if not self.done.total() % len(KINDS):
                self.chance.shuffle(kinds)  # all kinds come, in random order
            kind = kinds[self.done.total() % len(KINDS)]
            try:
                self.do(kind, self.chance.randrange(2))
            except (OSError, ValueError):  # the run is just starting again: its ranks are gone, or not named yet
                wait_s = AGAIN_S
            else:
                self.done[kind] += 1
                wait_s = self._some_time()
        self.over.wait(max(end - time.monotonic(), 0))
        self._see_it_go_on()
        if not self.over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    def end(self) -> None:
        """Do nothing any more; the disk can be written to when this returns."""
        self.over.set()
        self.join()

    def _some_time(self) -> float:
        return self.every_s * self.chance.uniform(0.7, 1.3)

    def _see_it_go_on(self) -> None:
        """A rank that is lost when the run is to stop is not started again: that is another promise."""
        now, deadline = time.time(), time.monotonic() + SETTLES_S
        while time.monotonic() < deadline and not self.over.wait(0.05):
            # A step that is heard of may be from before a fault that is still unnoticed.
            restarts = self.hears.when("restart ")
            if len(restarts) >= len(self.lost) and self.hears.steps[-1][0] > max([now, *restarts]):
                return

    def do(self, kind: str, rank: int) -> None:
        """Do it.

        Raises:
            OSError: it did not happen: nobody is there to whom it could, or nothing to be mounted over.
            ValueError: who the ranks are is just being written.
        """
        pids = pids_of(self.out)
        match kind:
            case "kill":
                signal_running(pids[rank], signal.SIGKILL)
                self.lost.add(tuple(pids))
            case "stop":
                signal_running(pids[rank], signal.SIGSTOP)
                self.lost.add(tuple(pids))
            case "disk" if self.mounts:
                with read_only(self.out / "checkpoints"):
                    self.over.wait(BAD_S)
            case "disk":
                self.faults.disk(self.chance.choice([errno.ENOSPC, errno.EROFS, errno.EIO]))
                self.over.wait(BAD_S)
                self.faults.disk(None)
            case "slow":
                until = time.monotonic() + BAD_S
                while time.monotonic() < until:
                    ran = time.monotonic()
                    time.sleep(0.005)
                    signal_running(pids[rank], signal.SIGSTOP)
                    time.sleep(min(2 * (time.monotonic() - ran), LONGEST_STOP_S))
                    os.kill(pids[rank], signal.SIGCONT)


def signal_running(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that runs.

    Raises:
        ProcessLookupError: it has ended, if unburied, or is stopped: the signal would change nothing.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        raise ProcessLookupError(f"process {pid} is not there") from None
    if state in "ZXT":
        raise ProcessLookupError(f"process {pid} is in state {state}")
    os.kill(pid, number)


@dataclass(frozen=True)
class Soaked:
    """What a run in trouble came to.

    Attributes:
        goodput: seconds of its steps in a run without trouble, over those that it took.
        done: how often each kind of fault happened.
        unsaved: how often a save that failed was told of; not again while the next ones fail as it did.
        said: all of it, in a line.
    """

    goodput: float
    done: dict[str, int]
    unsaved: int
    said: str


def soak(whole: tuple[Job, RunResult], faults: Faults, out: Path, seconds: float, every_s: float) -> Soaked:
    """A run in trouble against one without: equal to the last bit."""
    job = replace(whole[0], out=out, steps=10**6, save_every=20, restarts=10**6)
    hears = Hears()
    trouble = Trouble(out, faults, hears, seconds, every_s, seed=11)
    trouble.start()
    try:
        with pytest.raises(evenflow.StoppedError) as stopped:
            evenflow.train(job, hears)
    finally:
        trouble.end()
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
    done = trouble.done
    assert restarts == len(trouble.lost)  # each kill and each stop, unless its attempt was lost already
    assert 1 <= restarts <= done["kill"] + done["stop"]
    said = ", ".join(f"{number} {kind}" for kind, number in done.items())
    disk = "read-only by the kernel" if trouble.mounts else "failing by injection"
    unsaved = [line for line in hears.starting("warning: the state after step") if " is not saved: " in line]
    return Soaked(
        goodput,
        dict(done),
        len(unsaved),
        f"{seconds:.0f} s, {last} steps, faults: {said} (disk: {disk}, noticed {len(unsaved)} times); "
        f"{restarts} restarts, {done['kill'] + done['stop'] - restarts} faults in a start already lost; "
        f"goodput {goodput:.1%}",
    )


def test_a_few_faults_one_after_another(whole: tuple[Job, RunResult], faults: Faults, tmp_path: Path) -> None:
    soaked = soak(whole, faults, tmp_path / "run", seconds=15, every_s=4)
    assert len(soaked.done) >= 2


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_fault_every_15_seconds_for_10_minutes(
    whole: tuple[Job, RunResult], faults: Faults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soaked = soak(whole, faults, tmp_path / "run", seconds=600, every_s=15)
    with capsys.disabled():
        print(f"\nsoak: {soaked.said}")
    assert min(soaked.done[kind] for kind in KINDS) >= 5
    assert soaked.unsaved >= 1
    assert soaked.goodput >= 0.7
