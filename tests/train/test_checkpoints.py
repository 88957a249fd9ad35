"""Checkpoints while a run goes on: what is kept, what a killed or damaged one costs, and that nothing else changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import evenflow
from evenflow.files import load_metrics, load_samples
from evenflow.train import Job, RunResult, Silent
from tests.train.small_job import small_job
from tests.train.test_resume import tensors_of


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return small_job(tmp_path_factory.mktemp("saves"), steps=7, global_batch_size=4, processes=2)


@pytest.fixture(scope="module")
def whole(job: Job) -> RunResult:
    return evenflow.train(job)


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def same_end(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same state, losses and samples."""
    states = [tensors_of(out / "checkpoints" / "step-00000007") for out in (first, second)]
    losses = [[own.loss for own in load_metrics(out / "metrics.jsonl")] for out in (first, second)]
    ledgers = [load_samples(out / "samples.jsonl") for out in (first, second)]
    return (
        states[0].keys() == states[1].keys()
        and all(torch.equal(own, states[1][name]) for name, own in states[0].items())
        and losses[0] == losses[1]
        and ledgers[0] == ledgers[1]
    )


def test_the_newest_and_each_nth_are_kept(job: Job, whole: object) -> None:
    out = job.out.parent / "kept"
    evenflow.train(replace(job, out=out, save_every=1, keep_last=2, keep_every=3))
    assert names(out) == ["step-00000003", "step-00000006", "step-00000007"]
    assert same_end(out, job.out)
    manifest = json.loads((out / "checkpoints" / "step-00000003" / "manifest.json").read_text())
    assert (manifest["step"], manifest["tokens"]) == (3, 3 * 4 * 32)
    assert manifest["files"].keys() == {"rank-0.safetensors", "rank-1.safetensors"}
    assert manifest["settings"]["lr"] == 1e-3


def test_what_a_failed_save_left_goes_with_the_next_one_that_is_whole(job: Job) -> None:
    out = job.out.parent / "left"

    class Leaves(Silent):
        def saved(self, checkpoint: Path, write_s: float, hash_s: float) -> None:
            for step in (1, 99):  # of what is being written nothing is touched
                (checkpoint.parent / f"partial-{step:08d}").mkdir(exist_ok=True)

    evenflow.train(replace(job, out=out, stop_at=4, save_every=2), Leaves())
    assert names(out) == ["partial-00000099", "step-00000002", "step-00000004"]


@pytest.fixture(scope="module")
def stopped(job: Job) -> Path:
    """A run that stopped with two checkpoints."""
    evenflow.train(replace(job, out=job.out.parent / "stopped", save_every=2, stop_at=4))
    return job.out.parent / "stopped"


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "extra", "manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    job: Job, whole: object, stopped: Path, damage: str, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    newest = out / "checkpoints" / "step-00000004"
    shard = newest / "rank-1.safetensors"
    content = bytearray(shard.read_bytes())
    said = str(shard)
    if damage == "flipped":
        content[-1] ^= 1  # the least bit of the last tensor
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(content[:-8])
    elif damage == "missing":
        shard.unlink()
    elif damage == "extra":
        (newest / "rank-2.safetensors").write_bytes(content)
        said = str(newest / "rank-2.safetensors")
    else:
        (newest / "manifest.json").write_text('{"format_version": 99}')
        said = str(newest / "manifest.json")
    heard: list[str] = []

    class Listener(Silent):
        def said(self, text: str) -> None:
            heard.append(text)

    evenflow.train(replace(job, out=out, resume=True, save_every=2), Listener())
    warning = next(line for line in heard if line.startswith("warning: "))
    assert said in warning
    assert f"going on from {out / 'checkpoints' / 'step-00000002'}, after step 2" in warning
    assert same_end(out, job.out)
    assert "damaged-00000004" in names(out)


def test_when_all_are_damaged_nothing_is_made_up(job: Job, stopped: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    for shard in (out / "checkpoints").glob("step-*/rank-0.safetensors"):
        content = shard.read_bytes()
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        evenflow.InputError, match=r"step-00000004/rank-0.* hash .*cannot go on from it, nor from 1 older"
    ):
        evenflow.train(replace(job, out=out, resume=True))


def test_a_run_that_diverges_stops_with_its_samples_named(
    job: Job, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    wild = replace(job, out=out, learning_rate=1e30, processes=1, steps=6, save_every=1)
    with pytest.raises(evenflow.FaultError, match=r"came to a loss of .*(nan|inf).*samples\.jsonl"):
        evenflow.train(wild)
    metrics = load_metrics(out / "metrics.jsonl")
    assert metrics[-1].loss != metrics[-1].loss or metrics[-1].grad_norm != metrics[-1].grad_norm
    assert len(load_samples(out / "samples.jsonl")[metrics[-1].step]) == 4
    assert not (out / "checkpoints" / f"step-{metrics[-1].step:08d}").exists()
    assert not (out / "model").exists()
