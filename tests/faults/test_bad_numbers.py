"""NaN and Inf, in loss, gradient and activation, on one stage: all stop within the step, and nothing of it is saved."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest

import evenflow
from evenflow.files import load_metrics, load_samples, save_plan
from evenflow.train import Job, RunResult
from tests.faults.conftest import Hears
from tests.faults.injection import Faults, alive, pids_of

# What the stage of a rank makes in a pass: the first one's forward an activation, the last one's the loss.
ACTIVATION, LOSS = (0, "forward", "output"), (1, "forward", "output")
WEIGHTS_GRADIENT, INPUT_GRADIENT = (0, "backward", "gradient"), (1, "backward", "gradient")
PLACES = (ACTIVATION, LOSS, WEIGHTS_GRADIENT, INPUT_GRADIENT)
IN_CI = {("nan", ACTIVATION), ("inf", LOSS), ("inf", INPUT_GRADIENT), ("nan", WEIGHTS_GRADIENT)}


def check_stops(job: Job, faults: Faults, processes: int = 2) -> None:
    """Whatever is planned for step 6 ends the run in it: what was good stays, and no rank goes on."""
    hears = Hears()
    with pytest.raises(evenflow.FaultError, match=r"^step 6 came to a loss of .*its samples are [\d, ]+, the last"):
        evenflow.train(job, hears)
    assert not hears.starting("restart")  # it would come again
    assert [own.step for own in load_metrics(job.out / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert len(load_samples(job.out / "samples.jsonl")[6]) == job.global_batch_size
    assert [own.name for own in (job.out / "checkpoints").iterdir() if own.name.startswith("step")] == ["step-00000003"]
    assert not (job.out / "model").exists()
    pids = pids_of(job.out)
    assert len(pids) == processes
    assert not alive(pids)
    for each in range(processes):
        assert faults.counted(each, "begin_step") == 6  # no rank entered the next one
        assert faults.counted(each, "step") == 5  # nor updated anything in this one


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        pytest.param(kind, place, marks=() if (kind, place) in IN_CI else pytest.mark.full)
        for kind in ("nan", "inf")
        for place in PLACES
    ],
)
def test_the_run_stops_in_that_step_and_keeps_what_was_good(
    whole: tuple[Job, RunResult], faults: Faults, tmp_path: Path, kind: str, place: tuple[int, str, str]
) -> None:
    """The 22nd pass is in step 6, of four microbatches each."""
    rank, point, what = place
    faults.plan(rank, point, 22, f"{kind} {what}")
    check_stops(replace(whole[0], out=tmp_path / "run"), faults)


def test_replicas_stop_with_the_one_that_has_it(whole: tuple[Job, RunResult], faults: Faults, tmp_path: Path) -> None:
    """A replica has two of the four microbatches, so the 11th pass is in step 6; the other one's numbers are good."""
    job = whole[0]
    plan = evenflow.plan(job.model, global_batch_size=8, micro_batch_size=2, seq_length=32, pp=2, dp=2)
    save_plan(plan, tmp_path / "plan.json")
    faults.plan(0, "forward", 11, "nan output")
    check_stops(replace(job, out=tmp_path / "run", plan=tmp_path / "plan.json", processes=4), faults, processes=4)


def test_a_run_that_is_to_go_on_does(whole: tuple[Job, RunResult], faults: Faults, tmp_path: Path) -> None:
    job, _ = whole
    faults.plan(0, "forward", 22, "nan output")
    result = evenflow.train(replace(job, out=tmp_path / "run", stop_on_nan=False))
    assert [own.step for own in result.metrics if not isfinite(own.loss)] == list(range(6, 13))
    assert [faults.counted(each, "step") for each in (0, 1)] == [12, 12]
