"""A run that stopped goes on as if it never had, under any number of processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import evenflow
from evenflow.files import load_samples
from evenflow.train import Job


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of all safetensors files in a folder."""
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.fixture
def job(make_model: Callable[..., Path], text: Path, tmp_path: Path) -> Job:
    return Job(
        model=str(make_model()),
        data=text,
        out=tmp_path / "run",
        steps=8,
        global_batch_size=8,
        micro_batch_size=2,
        seq_length=32,
        processes=2,
        learning_rate=1e-3,
        check=False,
    )


def test_three_resumes_in_other_layouts_equal_the_run_that_never_stopped(job: Job, tmp_path: Path) -> None:
    whole = evenflow.train(replace(job, out=tmp_path / "whole", save_every=3))
    evenflow.train(replace(job, stop_at=2))
    evenflow.train(replace(job, stop_at=3, resume=True, processes=3))
    evenflow.train(replace(job, stop_at=6, resume=True, processes=1))
    last = evenflow.train(replace(job, resume=True, schedule="gpipe"))
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


def test_metrics_past_the_checkpoint_are_dropped(job: Job) -> None:
    evenflow.train(replace(job, stop_at=3))
    with (job.out / "metrics.jsonl").open("a") as file:
        line = json.loads((job.out / "metrics.jsonl").read_text().splitlines()[-1])
        file.write(json.dumps({**line, "step": 4, "loss": 99.0}) + "\n")
    resumed = evenflow.train(replace(job, resume=True))
    assert [own.step for own in resumed.metrics] == list(range(1, 9))
    assert max(own.loss for own in resumed.metrics) < 99


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
def test_what_would_make_it_another_run_is_refused(job: Job, changes: dict[str, object], says: str) -> None:
    evenflow.train(replace(job, stop_at=1, steps=8))
    before = {path: path.read_bytes() for path in job.out.rglob("*") if path.is_file()}
    if "plan" in changes:
        changes = {**changes, "plan": job.out / "plan.json"}
    with pytest.raises(evenflow.InputError, match=says):
        evenflow.train(replace(job, resume=True, **changes))
    assert {path: path.read_bytes() for path in job.out.rglob("*") if path.is_file()} == before


def test_another_model_is_refused(job: Job, make_model: Callable[..., Path]) -> None:
    evenflow.train(replace(job, stop_at=1))
    make_model(rope_theta=5e5)
    with pytest.raises(evenflow.InputError, match="another model"):
        evenflow.train(replace(job, resume=True))


def test_a_users_own_files_among_the_checkpoints_stay(job: Job) -> None:
    evenflow.train(replace(job, stop_at=1))
    (job.out / "checkpoints" / "notes.txt").write_text("mine")
    evenflow.train(replace(job, resume=True, stop_at=2))
    names = sorted(path.name for path in (job.out / "checkpoints").iterdir())
    assert names == ["notes.txt", "step-00000001", "step-00000002"]


def test_damaged_or_missing_checkpoints_are_named(job: Job) -> None:
    with pytest.raises(evenflow.InputError, match="there is no run in"):
        evenflow.train(replace(job, resume=True))
    job.out.mkdir()
    with pytest.raises(evenflow.InputError, match="no complete checkpoint"):
        evenflow.train(replace(job, resume=True))
    evenflow.train(replace(job, stop_at=1))
    shard = job.out / "checkpoints" / "step-00000001" / "rank-1.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(evenflow.InputError, match=r"rank-1.safetensors is missing or not of \d+ bytes"):
        evenflow.train(replace(job, resume=True))
    shard.write_bytes(content)
    (shard.parent / "manifest.json").write_text("{}")
    with pytest.raises(evenflow.InputError, match=r"manifest.json is damaged"):
        evenflow.train(replace(job, resume=True))


def test_a_finished_run_has_nothing_to_resume(job: Job) -> None:
    evenflow.train(replace(job, steps=1))
    with pytest.raises(evenflow.InputError, match="has done all its 1 steps"):
        evenflow.train(replace(job, steps=1, resume=True))
