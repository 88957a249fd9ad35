"""A run in bf16 goes on from its master weights to the bit, in any layout, and leaves a model in bf16."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import evenflow
from evenflow.train import Job
from tests.train.small_job import planned, small_job
from tests.train.test_resume import tensors_of

STEPS, STOP = 4, 2


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return small_job(tmp_path_factory.mktemp("bf16"), steps=STEPS)


def in_bf16(job: Job, **axes: Any) -> Job:
    return planned(job, dtype="bf16", **axes)


@pytest.fixture(scope="module")
def whole(job: Job) -> evenflow.train.RunResult:
    evenflow.train(replace(in_bf16(job, pp=2), stop_at=STOP))
    return evenflow.train(replace(in_bf16(job, pp=2), out=job.out.parent / "whole", save_every=STOP))


def test_other_stages_go_on_to_the_bit(job: Job, whole: Any, tmp_path: Path) -> None:
    resumed = evenflow.train(replace(in_bf16(job, pp=3), resume=True))
    assert [own.loss for own in resumed.metrics] == [own.loss for own in whole.metrics]
    for part in ("model", f"checkpoints/step-{STEPS:08}"):
        expected, found = tensors_of(whole.out / part), tensors_of(resumed.out / part)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_replicas_that_share_out_the_master_weights_go_on_from_them(job: Job, whole: Any) -> None:
    out = job.out.parent / "replicas"
    asked = in_bf16(job, pp=1, dp=2, zero=1)
    evenflow.train(replace(asked, out=out, stop_at=STOP))
    resumed = evenflow.train(replace(in_bf16(job, pp=2), out=out, resume=True))
    assert [own.loss for own in resumed.metrics] == pytest.approx([own.loss for own in whole.metrics], rel=1e-6)
    with pytest.raises(evenflow.InputError, match="was run with --dtype bf16, not fp32"):
        evenflow.train(replace(job, out=out, resume=True, dtype="fp32", processes=2))


def test_the_state_is_fp32_and_the_model_its_rounding(whole: Any) -> None:
    state, model = tensors_of(whole.out / f"checkpoints/step-{STEPS:08}"), tensors_of(whole.out / "model")
    assert {own.dtype for own in state.values()} == {torch.float32}
    assert {own.dtype for own in model.values()} == {torch.bfloat16}
    assert all(torch.equal(state[f"weight/{name}"].bfloat16(), own) for name, own in model.items())
    assert any(not torch.equal(state[f"weight/{name}"], own.float()) for name, own in model.items())
    read = AutoModelForCausalLM.from_pretrained(whole.out / "model")
    assert read.dtype == torch.bfloat16
    before = [own.loss for own in whole.metrics]
    assert before[-1] < before[0] - 0.1
