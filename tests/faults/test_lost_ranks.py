"""Ranks that are lost, by real signals: told, named, started again, and nothing of it in the weights."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import evenflow
from evenflow.files import StepMetrics, load_samples
from evenflow.train import Job, RunResult, patience
from tests.faults.conftest import SAVE_EVERY, STEPS, Hears, same_weights
from tests.faults.injection import POINTS, Faults, alive, pids_of
from tests.train.test_resume import tensors_of

Whole = tuple[Job, RunResult]
# Passes of the point before it happens: within step 9, when all ranks have told of the save after step 6, and steps are
# left; of a save, amid that after step 6.
CALLS = {"forward": 34, "backward": 34, "communication": 68, "optimizer": 9, "save": 2}
DOING = {
    "forward": r"in step 9, at {rank}F1;",
    "backward": r"in step 9, at {rank}B1;",
    "communication": r"in step 9, (at|waiting for) {rank}(F|B|RELEASE_F|RELEASE_B)\d;",
    "optimizer": r"in step 9, at STEP;",
    # A thread writes meanwhile, and gives way to what computes.
    "save": r"(copying its state after step [69]|in step \d+(, (at|waiting for) \S+)?);",
}
COVERING = [(0, "forward"), (1, "backward"), (0, "communication"), (1, "optimizer"), (0, "save")]  # all: in the soak


def survive(whole: Whole, out: Path, hears: Hears, **changes: object) -> Path:
    """Run the job to its end; it must be as if nothing had happened, and leave no process."""
    job, reference = whole
    seen: set[int] = set()
    said = hears.said

    def noting(text: str) -> None:
        with suppress(OSError, ValueError):
            seen.update(pids_of(out))
        said(text)

    hears.said = noting  # type: ignore[method-assign]
    result = evenflow.train(replace(job, out=out, **changes), hears)  # type: ignore[arg-type]
    seen.update(pids_of(out))
    assert [own.step for own in result.metrics] == list(range(1, STEPS + 1))
    assert [own.loss for own in result.metrics] == [own.loss for own in reference.metrics]
    assert same_weights(out, job.out)
    assert len(seen) == 2 * (1 + len(hears.starting("fault: ")))
    assert not alive(sorted(seen))
    return out


def check_killed(whole: Whole, faults: Faults, out: Path, rank: int, point: str) -> tuple[float, float]:
    """Kill a rank at a point; returns the seconds until its peer was ended, and until a step was done again."""
    hears = Hears()
    faults.plan(rank, point, CALLS[point], signal.SIGKILL)
    survive(whole, out, hears)
    at, (told,), (fault,) = faults.at(), hears.when("fault: "), hears.starting("fault: ")
    assert f"rank {rank} (process " in fault
    assert re.search(r" was killed by SIGKILL while " + DOING[point].format(rank=rank), fault), fault
    done_before = max(step for moment, step in hears.steps if moment < told)
    (restart,) = hears.starting("restart 1 of 3: ")
    gone_on_from = int(restart.partition("after step ")[2].split()[0])
    assert gone_on_from == 6  # what was being saved by then is not lost either
    assert done_before - gone_on_from <= SAVE_EVERY
    return told - at, hears.step_after(told) - at


@pytest.mark.parametrize(("rank", "point"), COVERING)
def test_a_killed_rank_costs_what_came_after_the_checkpoint(
    whole: Whole, faults: Faults, tmp_path: Path, rank: int, point: str
) -> None:
    check_killed(whole, faults, tmp_path / "run", rank, point)  # in seconds: in the soak


def test_a_killed_run_goes_on_in_another_layout_from_what_it_was_saving(
    whole: Whole, faults: Faults, tmp_path: Path
) -> None:
    """Rank 1 dies amid its write of the state after step 6, and is not started again."""
    job, reference = whole
    out = tmp_path / "run"
    faults.plan(1, "save", CALLS["save"], signal.SIGKILL)
    with pytest.raises(evenflow.FaultError, match=r"^rank 1 .*SIGKILL while "):
        evenflow.train(replace(job, out=out, restarts=0))
    again = replace(job, out=out, plan=None, processes=1, schedule="gpipe", resume=True)
    hears = Hears()
    result = evenflow.train(again, hears)
    assert [step for _, step in hears.steps] == list(range(7, STEPS + 1))
    assert [own.loss for own in result.metrics] == [own.loss for own in reference.metrics]
    assert same_weights(out, job.out)
    assert load_samples(out / "samples.jsonl") == load_samples(job.out / "samples.jsonl")


@pytest.mark.parametrize("restarts", [3, 0])
def test_a_rank_that_dies_when_all_is_saved_but_the_model_makes_it_again(
    whole: Whole, faults: Faults, tmp_path: Path, restarts: int
) -> None:
    """The state after the last step is none to go on from: nothing would make the model."""
    job, _ = whole
    faults.plan(1, "model", 1, signal.SIGKILL)
    run, hears = replace(job, out=tmp_path / "run", restarts=restarts), Hears()
    if restarts:
        evenflow.train(run, hears)
        assert [own.partition("after step ")[2] for own in hears.starting("restart ")] == [f"9 of {STEPS}"]
    else:
        with pytest.raises(evenflow.FaultError, match=r"SIGKILL while saving its state.*--resume goes on from"):
            evenflow.train(run, hears)
        evenflow.train(replace(run, resume=True))
    assert same_weights(run.out, job.out)


@pytest.mark.full
def test_the_only_state_there_is_is_kept_though_its_model_is_not(whole: Whole, faults: Faults, tmp_path: Path) -> None:
    faults.plan(1, "model", 1, signal.SIGKILL)
    with pytest.raises(evenflow.FaultError, match="SIGKILL while saving its state"):
        evenflow.train(replace(whole[0], out=tmp_path / "run", save_every=None, restarts=0))
    ours, theirs = (tensors_of(out / f"checkpoints/step-{STEPS:08d}") for out in (tmp_path / "run", whole[0].out))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.full
@pytest.mark.parametrize(("axes", "writers"), [({"pp": 1, "dp": 2}, 1), ({"pp": 1, "tp": 2}, 2)], ids=["dp", "tp"])
def test_of_replicas_and_shards_no_save_is_lost_either(
    whole: Whole, faults: Faults, tmp_path: Path, axes: dict[str, int], writers: int
) -> None:
    """One process writes for two replicas, and two write their shards."""
    job = replace(whole[0], plan=None, processes=2, **axes)  # type: ignore[arg-type]
    evenflow.train(replace(job, out=tmp_path / "quiet"))
    faults.plan(0, "save", CALLS["save"], signal.SIGKILL, writers=writers)
    hears = Hears()
    evenflow.train(replace(job, out=tmp_path / "run"), hears)
    (restart,) = hears.starting("restart 1 of 3: ")
    assert "after step 6 " in restart
    assert same_weights(tmp_path / "run", tmp_path / "quiet")


def test_restarts_come_to_an_end(whole: Whole, faults: Faults, tmp_path: Path) -> None:
    """Each start is killed again: two restarts, then the last fault, with what would go on."""
    job, _ = whole
    faults.plan(0, "optimizer", 2, signal.SIGKILL)
    again = Hears()
    said = again.said

    def another(text: str) -> None:
        said(text)
        if text.startswith("restart"):
            faults.plan(0, "optimizer", 2, signal.SIGKILL)

    again.said = another  # type: ignore[method-assign]
    with pytest.raises(evenflow.FaultError, match=r"SIGKILL .* 2 of 2 restarts were used since .*; --resume goes on"):
        evenflow.train(replace(job, out=tmp_path / "run", restarts=2), again)
    assert len(again.starting("fault: ")) == 2


def test_a_stopped_rank_is_silent_and_killed(whole: Whole, faults: Faults, tmp_path: Path) -> None:
    check_stopped(whole, faults, tmp_path / "run", 1)


def check_stopped(whole: Whole, faults: Faults, out: Path, rank: int) -> tuple[float, float]:
    """Stop a rank; returns the seconds until it was noticed, and until a step was done again."""
    hears = Hears()
    faults.plan(rank, "forward", CALLS["forward"], signal.SIGSTOP)
    survive(whole, out, hears)
    at, (told,), (fault,) = faults.at(), hears.when("fault: "), hears.starting("fault: ")
    assert f"rank {rank} (process " in fault
    assert "is stopped (SIGSTOP) and silent: no heartbeat for " in fault
    assert f"in step 9, at {rank}F1" in fault
    return told - at, hears.step_after(told) - at


@pytest.mark.alone  # patience is short here
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("hang", r"stuck: no rank has begun anything for .*: rank 0 \(process \d+\) in step 9, at 0F1; "),
        ("hold", r"rank 0 \(process \d+\) is silent: no heartbeat for .* in step 9, at 0F1; "),
    ],
)
def test_a_stuck_rank_is_told_from_one_that_waits_for_it(
    whole: Whole, faults: Faults, tmp_path: Path, what: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_SILENT_AT_LEAST_S", 4.5)
    if what == "hang":
        monkeypatch.setattr(patience, "_STUCK_AT_LEAST_S", 3.0)
        monkeypatch.setattr(patience, "_STUCK_STEPS", 3)
    hears = Hears()
    faults.plan(0, "forward", CALLS["forward"], what)
    survive(whole, tmp_path / "run", hears)
    (fault,) = hears.starting("fault: ")
    assert re.search(says, fault), fault
    assert faults.at() < hears.when("fault: ")[0]


class Slows(Hears):
    """From a step on, stops a rank for two thirds of the time, by SIGSTOP and SIGCONT."""

    def __init__(self, out: Path, rank: int, first: int) -> None:
        super().__init__()
        self.out, self.rank, self.first = out, rank, first
        self.over = threading.Event()
        self.thread: threading.Thread | None = None

    def stepped(self, metrics: StepMetrics, steps: int) -> None:
        super().stepped(metrics, steps)
        if metrics.step == self.first:
            self.thread = threading.Thread(target=self.slow, args=(pids_of(self.out)[self.rank],))
            self.thread.start()

    def slow(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            while not self.over.is_set():
                ran = time.monotonic()
                time.sleep(0.005)
                os.kill(pid, signal.SIGSTOP)
                time.sleep(2 * (time.monotonic() - ran))  # of what it really had, on a busy machine too
                os.kill(pid, signal.SIGCONT)

    def end(self) -> None:
        self.over.set()
        if self.thread is not None:
            self.thread.join()


def named_slow(hears: Hears) -> list[tuple[int, int]]:
    """Who was named as slow, and when: after how many steps of a run in which no rank was lost."""
    assert not hears.starting("fault: ")
    named = [(moment, re.match(r"warning: rank (\d+) is slow: ", line)) for moment, line in hears.lines]
    return [
        (int(found[1]), max(step for done, step in hears.steps if done <= moment)) for moment, found in named if found
    ]


def slowed(whole: Whole, out: Path, rank: int) -> list[tuple[int, int]]:
    """Slow a rank to a third, once its pace is known; returns who was named as slow, and after how many steps.

    In steps of 32 microbatches: else most of one passes between two stops, or in the time that its news takes.
    """
    first = 20
    hears = Slows(out, rank, first)
    job = replace(whole[0], out=out, plan=None, global_batch_size=64, steps=first + 24, save_every=None)
    try:
        evenflow.train(job, hears)
    finally:
        hears.end()
    assert len(hears.steps) == first + 24
    return [(named, step - first) for named, step in named_slow(hears)]


@pytest.mark.alone  # who is slow is told by seconds
@pytest.mark.parametrize("rank", [0, 1])
def test_a_slow_rank_is_named_and_lives(whole: Whole, faults: Faults, tmp_path: Path, rank: int) -> None:
    """It takes five times as long for all that it computes: a third is near to what a busy machine does."""
    first, hears = 20, Hears()
    faults.plan(rank, "forward", 4 * first + 1, "fifth")
    evenflow.train(replace(whole[0], out=tmp_path / "run", steps=first + 20, save_every=None), hears)
    assert len(hears.steps) == first + 20
    assert {named for named, _ in named_slow(hears)} == {rank}


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_each_rank_is_named_when_it_is_slow(whole: Whole, tmp_path: Path, report: Callable[..., None]) -> None:
    runs = [(rank, slowed(whole, tmp_path / f"{number}-{rank}", rank)) for number in range(3) for rank in (0, 1)]
    steps = [after for rank, found in runs for named, after in found if named == rank]
    report("slowed to a third: named after", steps, "steps", 0)
    assert [[named for named, _ in found] for _, found in runs] == [[rank] for rank, _ in runs]
    assert 0 < min(steps) <= max(steps) <= 20


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_normal_steps_accuse_nobody(whole: Whole, tmp_path: Path) -> None:
    """Nor do saves and evaluations between them, which take longer than a step."""
    hears = Hears()
    job = replace(whole[0], out=tmp_path / "run", steps=1000, save_every=50, eval_every=100)
    result = evenflow.train(job, hears)
    assert len(hears.steps) == 1000
    assert hears.saves
    assert [own.step for own in result.metrics if own.eval_loss is not None] == list(range(100, 1001, 100))
    assert not [line for _, line in hears.lines if line.startswith(("fault", "warning: rank"))]


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_rank_at_every_point(whole: Whole, faults: Faults, tmp_path: Path, report: Callable[..., None]) -> None:
    times = [
        check_killed(whole, faults, tmp_path / f"{number}-{rank}-{point}", rank, point)
        for number in range(2)
        for rank in (0, 1)
        for point in POINTS
    ]
    report("SIGKILL: peers ended", [told for told, _ in times])
    report("SIGKILL: a step done again", [again for _, again in times])
    stops = [check_stopped(whole, faults, tmp_path / f"stop-{number}", number % 2) for number in range(6)]
    report("SIGSTOP: noticed", [told for told, _ in stops])
    report("SIGSTOP: a step done again", [again for _, again in stops])
    assert max(told for told, _ in times) <= 1
    assert max(again for _, again in times) <= 8
    settled = [own.step_s for own in whole[1].metrics[1:]]  # the first one faults its memory in
    assert max(told for told, _ in stops) <= max(3 * float(np.percentile(settled, 99)), 5)
    assert max(again for _, again in stops) <= 12
