"""Replicas train as one process does, from the command's side: same losses, one model, state for any layout."""

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
from evenflow.train import Job
from tests.train.test_resume import tensors_of


@pytest.fixture
def job(make_model: Callable[..., Path], text: Path, tmp_path: Path) -> Job:
    return Job(
        model=str(make_model(tie_word_embeddings=True)),
        data=text,
        out=tmp_path / "run",
        steps=6,
        global_batch_size=8,
        micro_batch_size=2,
        seq_length=32,
        learning_rate=1e-3,
        check=False,
    )


def test_dp_2_x_pp_2_has_the_loss_curve_of_one_process_also_across_a_resume(job: Job, tmp_path: Path) -> None:
    """A tied model: first pipelines with ZeRO 1, then three processes of one pipeline, then replicas without it."""
    alone = evenflow.train(replace(job, out=tmp_path / "alone", processes=1))
    first = evenflow.train(replace(job, pp=2, dp=2, zero=1, stop_at=2))
    assert [first.plan.axes.pp, first.plan.axes.dp, first.plan.zero] == [2, 2, 1]
    assert len(json.loads((job.out / "ranks.json").read_text())) == 4
    assert len(first.metrics[0].peak_bytes) == len(first.measured.ranks) == 2
    evenflow.train(replace(job, pp=3, stop_at=4, resume=True))
    last = evenflow.train(replace(job, processes=2, dp=2, resume=True))
    assert [last.plan.axes.pp, last.plan.axes.dp] == [1, 2]
    assert [own.loss for own in last.metrics] == pytest.approx([own.loss for own in alone.metrics], rel=1e-5)
    assert [own.grad_norm for own in last.metrics] == pytest.approx([own.grad_norm for own in alone.metrics], rel=1e-4)
    assert [own.tokens for own in last.metrics] == [own.tokens for own in alone.metrics]
    for part in ("model", "checkpoints/step-00000006"):
        expected, found = tensors_of(alone.out / part), tensors_of(last.out / part)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.linalg.vector_norm(found[name] - value) <= 1e-4 * torch.linalg.vector_norm(value), name
    model = AutoModelForCausalLM.from_pretrained(last.out / "model")
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.full  # in CI the losses and gradients of one step, in tests/parity
def test_a_model_that_drops_out_has_the_loss_curve_of_one_process_under_tp(
    job: Job, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Its check drops out too, and what is evaluated does not."""
    dropping = replace(job, model=str(make_model(attention_dropout=0.2)), check=True, steps=4, eval_share=0.1)
    alone = evenflow.train(replace(dropping, out=tmp_path / "alone", processes=1))
    shared = evenflow.train(replace(dropping, pp=1, tp=2, stop_at=2))
    shared = evenflow.train(replace(dropping, pp=1, tp=2, resume=True))
    assert shared.plan.axes.tp == 2
    assert [own.loss for own in shared.metrics] == pytest.approx([own.loss for own in alone.metrics], rel=1e-5)
    assert [own.grad_norm for own in shared.metrics] == pytest.approx(
        [own.grad_norm for own in alone.metrics], rel=1e-4
    )
    assert shared.metrics[-1].eval_loss == pytest.approx(alone.metrics[-1].eval_loss, rel=1e-5)
    still = evenflow.train(replace(dropping, model=str(make_model()), out=tmp_path / "still", processes=1, stop_at=1))
    assert still.metrics[0].loss != pytest.approx(alone.metrics[0].loss, rel=1e-5), "there is dropout"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"processes": 4, "dp": 3}, "--dp 3 does not divide 4 processes"),
        ({"processes": 8, "pp": 2, "dp": 2}, "--pp 2 --dp 2 needs 2 x 2 = 4 processes, and there are 8; 4 would do"),
        ({"dp": 3, "pp": 1}, r"a global batch of 8 does not divide over 3 replicas \(--dp\); 6 or 9 would do"),
        (
            {"dp": 2, "pp": 1, "micro_batch_size": 8},
            "leaves 4 sequences to each of 2 replicas .* microbatches of 8; 1, 2, 4 would do",
        ),
        ({"tp": 4, "pp": 1}, "--tp 4 does not divide the 2 key and value heads of llama; --tp 1 or 2 would do"),
        (
            {"tp": 2, "pp": 1, "schedule": "zb-h1"},
            "ZB-H1 puts weight gradients off, and under --tp 2 .*; 1f1b, gpipe",
        ),
        ({"tp": 2, "pp": 1, "schedule": "auto"}, "auto puts weight gradients off"),
    ],
)
def test_what_cannot_be_is_refused_with_numbers(job: Job, asked: dict[str, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        evenflow.train(replace(job, **asked))
    assert not job.out.exists()


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.full)])
def test_the_norms_that_1_2_and_4_processes_print_agree(
    job: Job, make_model: Callable[..., Path], tmp_path: Path, tied: bool
) -> None:
    """Of every step, in `metrics.jsonl`: a tied weight that counts twice, or not at all, is off by tenths."""
    job = replace(job, model=str(make_model(tie_word_embeddings=tied)))
    norms: dict[int, list[float]] = {}
    for pp in (1, 2, 4):
        out = tmp_path / f"pp-{pp}"
        evenflow.train(replace(job, out=out, pp=pp, processes=pp))
        norms[pp] = [json.loads(line)["grad_norm"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(norms[1]) == job.steps
    for pp in (2, 4):
        assert norms[pp] == pytest.approx(norms[1], rel=1e-6)
