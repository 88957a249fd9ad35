"""What one start of torchrun's workers leaves for the next: the run goes on in its own folder, and in no other."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed import HashStore

import evenflow
from evenflow.errors import (
    EvenflowError,
    FaultError,
    ImpossibleError,
    InputError,
    RankError,
    RankLostError,
    StoppedError,
    WorkerLostError,
)
from evenflow.files import StepMetrics, load_metrics, load_plan
from evenflow.launch import ThisHost
from evenflow.train import Job, Silent
from evenflow.train.lock import LOCK
from evenflow.train.signals import StopSignals
from evenflow.train.starts import Starts

run_module = importlib.import_module("evenflow.train.run")  # the package's `train` hides the room of that name


@pytest.fixture
def starts() -> Starts:
    """A torchrun's own, which has just begun."""
    return Starts(HashStore(), "job")


@pytest.fixture
def job(make_model: Callable[..., Path], text: Path, tmp_path: Path) -> Job:
    """Six steps on one process."""
    sizes = {"global_batch_size": 4, "micro_batch_size": 2, "seq_length": 32, "processes": 1}
    return Job(model=str(make_model()), data=text, out=tmp_path / "run", steps=6, check=False, save_every=2, **sizes)  # type: ignore[arg-type]


class Dies(Silent):
    """Loses a worker after a step, unless that is None, and notes what is said."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.lines: list[str] = []
        self.steps: list[int] = []

    def said(self, text: str) -> None:
        self.lines.append(text)

    def stepped(self, metrics: StepMetrics, steps: int) -> None:
        self.steps.append(metrics.step)
        if metrics.step == self.after:
            raise WorkerLostError("the worker of rank 1 is lost")


def start(job: Job, starts: Starts, after: int | None = None) -> Dies:
    """Start the run as the leading worker does; it may die after a step."""
    dies = Dies(after)
    with StopSignals() as signals:
        try:
            run_module._run(job, dies, signals, ThisHost(), starts)
        except WorkerLostError:
            assert after is not None
    return dies


def test_the_next_start_goes_on_from_the_newest_checkpoint(job: Job, starts: Starts) -> None:
    start(job, starts, after=5)
    plan = (job.out / "plan.json").read_bytes()
    again = start(job, starts)
    assert f"restart by torchrun: the run in {job.out} goes on from its newest checkpoint" in again.lines
    assert again.steps[0] in (3, 5)  # the save after step 4 may still have been written
    assert not [line for line in again.lines if line.startswith("profile:")]
    assert [own.step for own in load_metrics(job.out / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert (job.out / "plan.json").read_bytes() == plan


def test_a_start_that_saved_nothing_is_begun_anew_and_nothing_of_others_is_removed(job: Job, starts: Starts) -> None:
    start(replace(job, save_every=None), starts, after=2)
    (job.out / "notes.txt").write_text("somebody's own")
    again = start(job, starts)
    assert f"restart by torchrun: the run in {job.out} begins anew, as nothing was saved yet" in again.lines
    assert again.steps == [1, 2, 3, 4, 5, 6]
    assert [own.step for own in load_metrics(job.out / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert (job.out / "notes.txt").read_text() == "somebody's own"


def test_a_folder_that_no_start_took_is_refused_as_ever(job: Job, starts: Starts) -> None:
    """A first start may have died before it looked at the folder, which then is somebody else's."""
    starts.begin()
    (job.out / "checkpoints" / "step-00000002").mkdir(parents=True)
    with pytest.raises(InputError, match="is not empty; a new folder, or --resume"):
        start(job, starts)
    assert not starts.has_taken(job.out)
    starts.took(job.out.with_name("other"))
    with pytest.raises(InputError, match="is not empty; a new folder, or --resume"):
        start(job, starts)


def test_a_folder_in_which_nothing_of_the_run_is_left_is_anybodys(
    job: Job, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is lost before the first step, and somebody else trains there before torchrun starts the others."""
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_prepare", lost)
        start(job, starts, after=0)
    assert not job.out.exists()
    evenflow.train(job)
    before = {path: path.stat().st_mtime_ns for path in job.out.rglob("*") if path.name != LOCK}
    with pytest.raises(InputError, match="is not empty; a new folder, or --resume"):
        start(job, starts)
    assert before == {path: path.stat().st_mtime_ns for path in job.out.rglob("*") if path.name != LOCK}


def test_the_plan_of_a_run_that_is_resumed_is_not_that_of_a_start_that_made_none(
    job: Job, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    evenflow.train(replace(job, stop_at=2))
    assert load_plan(job.out / "plan.json").schedule != "gpipe"
    resumed = replace(job, resume=True, schedule="gpipe")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_prepare", lost)
        start(resumed, starts, after=0)
    start(resumed, starts)
    assert load_plan(job.out / "plan.json").schedule == "gpipe"


def test_a_run_that_is_whole_is_not_started_again(job: Job, starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model and last checkpoint have their names when the worker that leads is lost."""
    monkeypatch.setattr(run_module, "_result", lost)
    start(job, starts, after=0)
    end = starts.end()
    assert end is not None
    assert (end.code, end.why) == (0, "the run is complete")


def test_a_store_that_is_gone_is_a_fault_that_says_so() -> None:
    class Gone(HashStore):
        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("Connection reset by peer\nframe 0")

    with pytest.raises(
        FaultError, match=r"^torchrun's store is gone, and its agent with it: Connection reset by peer$"
    ):
        Starts(Gone(), "job").end()


def lost(*_: object) -> None:
    raise WorkerLostError("the worker of rank 1 is lost")


def test_a_run_that_lives_in_the_folder_keeps_the_next_start_out(job: Job, starts: Starts) -> None:
    start(job, starts, after=5)
    hold = "import sys; from pathlib import Path; from evenflow.train.lock import FolderLock\n"
    hold += f"lock = FolderLock(Path({str(job.out)!r})); print('held', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold], **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == b"held\n"
        before = {path: path.stat().st_mtime_ns for path in job.out.rglob("*") if path.name != LOCK}
        with pytest.raises(InputError, match=rf"is in use: process {other.pid} on .* trains there"):
            start(job, starts)
        other.stdin.close()
    assert before == {path: path.stat().st_mtime_ns for path in job.out.rglob("*") if path.name != LOCK}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (InputError("x"), 2),
        (ImpossibleError("x"), 4),
        (FaultError("x"), 3),
        (RankError("x"), 3),
        (RankLostError("x"), 3),
        (StoppedError("x", 15), 143),
        (WorkerLostError("x"), None),
        (OSError("x"), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_what_would_come_again_is_not_tried_again(
    starts: Starts, error: BaseException | None, code: int | None
) -> None:
    starts.ended(error)
    end = starts.end()
    assert (end.code if end else None) == code
    if end is not None:
        assert end.error().exit_code == code
        assert isinstance(end.error(), EvenflowError)


def test_ranks_that_are_lost_while_the_run_is_asked_to_stop_say_nothing(starts: Starts) -> None:
    starts.ended(RankLostError("x"), asked=True)
    assert starts.end() is None


def test_starts_are_counted(starts: Starts) -> None:
    assert [starts.begin(), starts.begin()] == [1, 2]
    assert starts.leader() is None
    starts.announce({"port": 1})
    assert starts.leader() == {"port": 1}
