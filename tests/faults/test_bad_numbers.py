"""NaN and Inf, in loss, gradient and activation, on one stage: all stop within the step, and nothing of it is saved."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest

import evenflow
from evenflow.files import load_metrics, load_samples
from evenflow.train import Job, RunResult
from tests.faults.conftest import Hears
from tests.faults.injection import Faults, alive, pids_of


@pytest.mark.parametrize(
    ("rank", "point", "what"),
    [(0, "forward", "nan output"), (1, "backward", "inf gradient"), (1, "forward", "inf output")],
)
def test_the_run_stops_in_that_step_and_keeps_what_was_good(
    whole: tuple[Job, RunResult], faults: Faults, tmp_path: Path, rank: int, point: str, what: str
) -> None:
    """The 22nd pass is in step 6: of an activation on stage 0, a gradient on stage 1, and the loss itself."""
    job, _ = whole
    out, hears = tmp_path / "run", Hears()
    faults.plan(rank, point, 22, what)
    with pytest.raises(evenflow.FaultError, match=r"^step 6 came to a loss of .*its samples are [\d, ]+, the last"):
        evenflow.train(replace(job, out=out), hears)
    assert not hears.starting("restart")  # it would come again
    assert [own.step for own in load_metrics(out / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert len(load_samples(out / "samples.jsonl")[6]) == job.global_batch_size
    assert [path.name for path in (out / "checkpoints").iterdir() if path.name.startswith("step")] == ["step-00000003"]
    assert not (out / "model").exists()
    assert not alive(pids_of(out))
    for each in (0, 1):
        assert faults.counted(each, "begin_step") == 6  # no rank entered the next one
        assert faults.counted(each, "step") == 5  # nor updated anything in this one


def test_a_run_that_is_to_go_on_does(whole: tuple[Job, RunResult], faults: Faults, tmp_path: Path) -> None:
    job, _ = whole
    faults.plan(0, "forward", 22, "nan output")
    result = evenflow.train(replace(job, out=tmp_path / "run", stop_on_nan=False))
    assert [own.step for own in result.metrics if not isfinite(own.loss)] == list(range(6, 13))
    assert [faults.counted(each, "step") for each in (0, 1)] == [12, 12]
