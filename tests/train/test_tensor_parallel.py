"""Stages that are shared out train as one process does, from the command's side: same losses, one model, one state."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import evenflow
from evenflow.errors import InputError
from evenflow.files import save_plan
from evenflow.train import Job
from tests.train.test_resume import tensors_of


@pytest.fixture
def job(make_model: Callable[..., Path], text: Path, tmp_path: Path) -> Job:
    return Job(
        model=str(make_model(tie_word_embeddings=True, num_key_value_heads=4)),
        data=text,
        out=tmp_path / "run",
        steps=6,
        global_batch_size=8,
        micro_batch_size=2,
        seq_length=32,
        learning_rate=1e-3,
    )


def test_tp_2_x_pp_2_has_the_loss_curve_of_one_process_also_across_resumes(job: Job, tmp_path: Path) -> None:
    """From tp to none and to more: the state is saved by name and place, and so is the model."""
    alone = evenflow.train(replace(job, out=tmp_path / "alone", processes=1))
    first = evenflow.train(replace(job, pp=2, tp=2, stop_at=3))
    assert [first.plan.axes.pp, first.plan.axes.tp] == [2, 2]
    assert len(json.loads((job.out / "ranks.json").read_text())) == 4
    assert len(first.metrics[0].peak_bytes) == len(first.measured.ranks) == 2
    shards = sorted(path.name for path in (job.out / "checkpoints/step-00000003").glob("*.safetensors"))
    assert shards == [f"rank-{number}.safetensors" for number in range(4)]
    evenflow.train(replace(job, pp=2, stop_at=4, resume=True, check=False))
    last = evenflow.train(replace(job, pp=1, tp=4, resume=True, check=False))
    assert [own.loss for own in last.metrics] == pytest.approx([own.loss for own in alone.metrics], rel=1e-5)
    assert [own.grad_norm for own in last.metrics] == pytest.approx([own.grad_norm for own in alone.metrics], rel=1e-5)
    assert [own.tokens for own in last.metrics] == [own.tokens for own in alone.metrics]
    for part in ("model", "checkpoints/step-00000006"):
        expected, found = tensors_of(alone.out / part), tensors_of(last.out / part)
        assert found.keys() == expected.keys()  # those of a checkpoint are parts, by name; the model's are whole
        if part == "model":
            for name, value in expected.items():
                assert torch.linalg.vector_norm(found[name] - value) <= 1e-4 * torch.linalg.vector_norm(value), name
    model = AutoModelForCausalLM.from_pretrained(last.out / "model")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_plan_for_tp_is_followed_and_one_that_splits_the_backward_is_not(job: Job, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    found = evenflow.plan(job.model, global_batch_size=8, seq_length=32, micro_batch_size=2, pp=1, tp=2)
    save_plan(found, plan)
    with pytest.raises(InputError, match=r"--tp is 1, but .*plan.json has 2"):
        evenflow.train(replace(job, plan=plan, tp=1))
    facts = json.loads(plan.read_text())
    facts["schedule"] = "zb-h1"
    plan.write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"plan.json: ZB-H1 puts weight gradients off"):
        evenflow.train(replace(job, plan=plan))
    assert not job.out.exists()
