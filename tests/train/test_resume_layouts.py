"""A run goes on under another tp or dp from the very state that it had, and comes to the same within rounding."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import evenflow
from evenflow.files import load_samples
from evenflow.train import Job, Silent
from evenflow.train.checkpoint import state_hash
from evenflow.train.shards import Piece, hash_tensor, read_pieces
from tests.train.small_job import planned, small_job
from tests.train.test_resume import tensors_of

STEPS, STOP = 20, 10
LAYOUTS = [{"pp": 1, "tp": 2}, {"pp": 2, "dp": 2, "zero": 1}]


class Said(Silent):
    """Keeps the hash of the state that was read."""

    state = ""

    def said(self, text: str) -> None:
        if text.startswith("state: "):
            self.state = text.split()[1]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return small_job(tmp_path_factory.mktemp("layouts"), steps=STEPS)


@pytest.fixture(scope="module")
def whole(job: Job) -> evenflow.train.RunResult:
    """The run that never stops, and beside it one that does."""
    evenflow.train(replace(planned(job, pp=2), stop_at=STOP))
    return evenflow.train(replace(planned(job, pp=2), out=job.out.parent / "whole"))


def saved_hash(folder: Path) -> str:
    """The hash of a state as its files have it, whole tensors put together by torch's reader."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, own in tensors_of(folder).items():
        shapes[name] = tuple(own.shape)
    tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    read_pieces(folder, {name: Piece.whole(own) for name, own in tensors.items()})
    return state_hash({name: hash_tensor(own) for name, own in tensors.items()})


@pytest.mark.parametrize("axes", LAYOUTS, ids=["tp2", "dp2"])
def test_another_tp_or_dp_goes_on_from_the_same_state(job: Job, whole: Any, axes: dict[str, Any]) -> None:
    out = job.out.parent / "-".join(axes)
    shutil.copytree(job.out, out)
    said = Said()
    last = evenflow.train(replace(planned(job, **axes), out=out, resume=True), said)
    assert said.state == saved_hash(job.out / f"checkpoints/step-{STOP:08d}")
    losses = [own.loss for own in whole.metrics]
    assert [own.loss for own in last.metrics][:STOP] == losses[:STOP]
    worst = max(abs(own.loss / loss - 1) for own, loss in zip(last.metrics, losses, strict=True))
    expected, found = tensors_of(whole.out / "model"), tensors_of(out / "model")
    assert found.keys() == expected.keys()
    errors = {name: float((found[name] - own).norm() / own.norm()) for name, own in expected.items()}
    print(f"worst loss {worst:.1e}, worst tensor {max(errors.values()):.1e} {max(errors, key=errors.__getitem__)}")
    assert worst <= 1e-6
    assert max(errors.values()) <= 1e-6
    assert load_samples(out / "samples.jsonl") == load_samples(whole.out / "samples.jsonl")
