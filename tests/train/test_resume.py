"""A run that stopped goes on as if it never had, under any number of processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import evenflow
from evenflow.files import load_samples
from evenflow.train import Job, RunResult
from tests.train.small_job import small_job


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of all safetensors files in a folder."""
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return small_job(tmp_path_factory.mktemp("resume"), steps=8, processes=2)


@pytest.fixture(scope="module")
def whole(job: Job) -> RunResult:
    """The run that never stops."""
    return evenflow.train(replace(job, out=job.out.parent / "whole", save_every=3))


@pytest.fixture(scope="module")
def first(job: Job) -> Path:
    """The run after its first step."""
    return evenflow.train(replace(job, out=job.out.parent / "first", stop_at=1)).out


@pytest.fixture
def stopped(job: Job, first: Path, tmp_path: Path) -> Job:
    """The job that stopped after its first step, in a folder of the test's own."""
    return replace(job, out=Path(shutil.copytree(first, tmp_path / "run")))


def test_three_resumes_in_other_layouts_equal_the_run_that_never_stopped(stopped: Job, whole: RunResult) -> None:
    evenflow.train(replace(stopped, stop_at=3, resume=True, processes=3))
    evenflow.train(replace(stopped, stop_at=6, resume=True, processes=1))
    last = evenflow.train(replace(stopped, resume=True, schedule="gpipe"))
    assert [own.loss for own in last.metrics] == [own.loss for own in whole.metrics]
    assert [own.lr for own in last.metrics] == [own.lr for own in whole.metrics]
    for part in ("model", "checkpoints/step-00000008"):
        expected, found = tensors_of(whole.out / part), tensors_of(last.out / part)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert load_samples(last.out / "samples.jsonl") == load_samples(whole.out / "samples.jsonl")
    assert sorted(load_samples(last.out / "samples.jsonl")) == list(range(1, 9))
    for run in (last, whole):  # the two newest
        names = sorted(path.name for path in (run.out / "checkpoints").iterdir())
        assert names == ["step-00000006", "step-00000008"]
    assert not (last.out / "model.partial").exists()


def test_metrics_past_the_checkpoint_are_dropped_and_a_users_own_files_stay(stopped: Job) -> None:
    (stopped.out / "checkpoints" / "notes.txt").write_text("mine")
    with (stopped.out / "metrics.jsonl").open("a") as file:
        line = json.loads((stopped.out / "metrics.jsonl").read_text().splitlines()[-1])
        file.write(json.dumps({**line, "step": 2, "loss": 99.0}) + "\n")
    resumed = evenflow.train(replace(stopped, resume=True, stop_at=4))
    assert [own.step for own in resumed.metrics] == list(range(1, 5))
    assert max(own.loss for own in resumed.metrics) < 99
    names = sorted(path.name for path in (stopped.out / "checkpoints").iterdir())
    assert names == ["notes.txt", "step-00000001", "step-00000004"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 5}, "--seed 0, not 5"),
        ({"global_batch_size": 4}, "--global-batch-size 8, not 4"),
        ({"learning_rate": 0.1}, "--lr 0.001, not 0.1"),
        ({"steps": 9}, "--steps 8, not 9"),
        ({"micro_batch_size": 4}, "--micro-batch-size 2, not 4"),
        ({"stop_at": 1}, "--stop-at 2 to 8 would go on"),
        ({"plan": "followed.json", "processes": 3}, "--processes is 3"),
    ],
)
def test_what_would_make_it_another_run_is_refused(stopped: Job, changes: dict[str, object], says: str) -> None:
    before = {path: path.read_bytes() for path in stopped.out.rglob("*") if path.is_file()}
    if "plan" in changes:
        changes = {**changes, "plan": stopped.out / "plan.json"}
    with pytest.raises(evenflow.InputError, match=says):
        evenflow.train(replace(stopped, resume=True, **changes))
    assert {path: path.read_bytes() for path in stopped.out.rglob("*") if path.is_file()} == before


def test_another_model_is_refused(stopped: Job, make_model: Callable[..., Path]) -> None:
    with pytest.raises(evenflow.InputError, match="another model"):
        evenflow.train(replace(stopped, model=str(make_model(rope_theta=5e5)), resume=True))


def test_missing_checkpoints_are_named(job: Job, tmp_path: Path) -> None:
    lost = replace(job, out=tmp_path / "run", resume=True)
    with pytest.raises(evenflow.InputError, match="there is no run in"):
        evenflow.train(lost)
    lost.out.mkdir()
    with pytest.raises(evenflow.InputError, match="no complete checkpoint"):
        evenflow.train(lost)


def test_damaged_checkpoints_are_named(stopped: Job) -> None:
    shard = stopped.out / "checkpoints" / "step-00000001" / "rank-1.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(evenflow.InputError, match=r"rank-1.safetensors is missing or not of \d+ bytes"):
        evenflow.train(replace(stopped, resume=True))
    shard.write_bytes(content)
    (shard.parent / "manifest.json").write_text("{}")
    with pytest.raises(evenflow.InputError, match=r"manifest.json is damaged"):
        evenflow.train(replace(stopped, resume=True))


def test_a_finished_run_has_nothing_to_resume(job: Job, whole: RunResult) -> None:
    with pytest.raises(evenflow.InputError, match="has done all its 8 steps"):
        evenflow.train(replace(job, out=whole.out, resume=True))
