"""Answers alone are learned, documents do not see each other, what is held out is never trained on: under any layout.

One run is looked at from all sides: a mixture of experts as transformers saves it, questions with answers, evaluated on
a share that is held out. The reference is transformers on each document alone.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import evenflow
from evenflow.errors import InputError
from evenflow.files import load_metrics, load_samples, save_plan
from evenflow.train import Job, RunResult, Silent
from evenflow.train.sampler import hold_out
from evenflow.train.sequences import NOT_LEARNED, Sequences
from evenflow.train.store import TokenStore
from evenflow.train.tokenizer import train_bpe

SEQ = 32
SHARE = 0.2
MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "num_local_experts": 4,
    "vocab_size": 384,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
    "bos_token_id": None,
    "router_jitter_noise": 0.0,
}
QUESTIONS = [
    {"prompt": f"Q: what is {n} and {n}? ", "answer": f"A: {2 * n}" + ", I think" * (n % 3)} for n in range(160)
]


class Said(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def said(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("answers")
    bpe = train_bpe([own["prompt"] + own["answer"] for own in QUESTIONS], 380)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>").save_pretrained(folder / "model")
    torch.manual_seed(3)
    settings = {**MIXTRAL}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings)).save_pretrained(
        folder / "model"
    )
    (folder / "questions.jsonl").write_text("".join(json.dumps(own) + "\n" for own in QUESTIONS))
    return Job(
        model=str(folder / "model"),
        data=folder / "questions.jsonl",
        out=folder / "run",
        steps=10,
        global_batch_size=8,
        micro_batch_size=2,
        seq_length=SEQ,
        processes=2,
        learning_rate=1e-3,
        eval_every=4,
        eval_share=SHARE,
        eval_micro_batch_size=3,
        check=False,
    )


def plan_for(job: Job, **axes: Any) -> Path:
    """A plan by FLOPs: nothing is timed for it."""
    path = job.out.parent / f"plan-{'-'.join(map(str, axes.values()))}.json"
    save_plan(evenflow.plan(job.model, global_batch_size=8, micro_batch_size=2, seq_length=SEQ, **axes), path)
    return path


@pytest.fixture(scope="module")
def run(job: Job) -> RunResult:
    return evenflow.train(replace(job, plan=plan_for(job, pp=2)))


def sequences_of(out: Path, packing: str = "whole") -> Sequences:
    return Sequences(TokenStore.open(out / "tokens"), SEQ, packing, packing == "whole")  # type: ignore[arg-type]


@torch.no_grad()
def mean_loss(model: PreTrainedModel, sequences: Sequences, numbers: list[int] | tuple[int, ...]) -> float:
    """Over the learned tokens of some sequences, each document on its own."""
    total, count = 0.0, 0
    for number in numbers:
        sample = sequences.read(number)
        bounds = [*np.flatnonzero(sample.positions == 0).tolist(), len(sample.ids)]
        for begin, end in pairwise(bounds):
            labels = torch.from_numpy(sample.labels[None, begin:end])
            learned = int((labels[:, 1:] != NOT_LEARNED).sum())
            if learned:
                ids = torch.from_numpy(sample.ids[None, begin:end])
                total += learned * float(model(input_ids=ids, labels=labels, use_cache=False).loss)
                count += learned
    return total / count


def test_the_first_loss_is_that_of_the_answers_each_document_alone(job: Job, run: RunResult) -> None:
    sequences = sequences_of(run.out)
    ids = load_samples(run.out / "samples.jsonl")[1]
    model = AutoModelForCausalLM.from_pretrained(job.model)
    assert run.metrics[0].loss == pytest.approx(mean_loss(model, sequences, ids), rel=1e-6)
    rows = [sequences.read(number) for number in ids]
    assert any((row.positions[1:] == 0).any() for row in rows), "documents share sequences"
    together = (
        torch.from_numpy(np.stack([row.ids for row in rows])),
        torch.from_numpy(np.stack([row.labels for row in rows])),
    )
    with torch.no_grad():
        seeing = float(model(input_ids=together[0], labels=together[1], use_cache=False).loss)
    assert seeing != pytest.approx(run.metrics[0].loss, rel=1e-5), "documents that see each other have another loss"
    assert run.metrics[-1].loss < run.metrics[0].loss - 0.3


def test_what_is_held_out_is_evaluated_and_never_trained_on(run: RunResult) -> None:
    """The saved model is opened by transformers: after ten steps its loss is the last evaluation's."""
    assert [own.step for own in run.metrics if own.eval_loss is not None] == [4, 8, 10]
    sequences = sequences_of(run.out)
    trained, held_out = hold_out(0, len(sequences), SHARE)
    assert len(held_out) == round(SHARE * len(sequences)) >= 4
    read = {own for samples in load_samples(run.out / "samples.jsonl").values() for own in samples}
    assert read <= set(trained.tolist())
    assert not read & set(held_out.tolist())
    assert len(read) > len(trained) / 2
    model = AutoModelForCausalLM.from_pretrained(run.out / "model")
    assert run.metrics[-1].eval_loss == pytest.approx(mean_loss(model, sequences, held_out.tolist()), rel=1e-6)
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 8, 10]
    assert lines[3]["eval_perplexity"] == pytest.approx(exp(lines[3]["eval_loss"]))
    assert load_metrics(run.out / "metrics.jsonl") == run.metrics
    assert f"held-out loss {run.metrics[-1].eval_loss:.4f}" in (run.out / "report.html").read_text()


@pytest.mark.parametrize(
    "axes",
    [
        {"pp": 2, "dp": 2, "zero": 1},
        pytest.param({"pp": 2, "tp": 2, "dp": 2}, marks=pytest.mark.full),
        pytest.param({"pp": 1}, marks=pytest.mark.full),
        pytest.param({"pp": 3, "schedule": "zb-h1"}, marks=pytest.mark.full),
    ],
    ids=lambda axes: "-".join(f"{name}{size}" for name, size in axes.items()),
)
def test_every_layout_finds_the_same_losses(job: Job, run: RunResult, axes: dict[str, Any]) -> None:
    """Replicas have other answers in their halves, and count by those of all."""
    out = job.out.parent / "-".join(axes)
    settings = {"plan": plan_for(job, **axes), "processes": None, "eval_micro_batch_size": 5, "stop_at": 4}
    other = evenflow.train(replace(job, out=out, **settings))
    assert [own.loss for own in other.metrics] == pytest.approx([own.loss for own in run.metrics[:4]], rel=1e-5)
    assert load_samples(out / "samples.jsonl").items() <= load_samples(run.out / "samples.jsonl").items()
    assert other.metrics[-1].eval_loss == pytest.approx(run.metrics[3].eval_loss, rel=1e-5)


def test_other_data_is_evaluated_and_padded_to_each_microbatch(job: Job) -> None:
    """Each document is a sequence of its own; the longest of a microbatch says how long it is on every rank."""
    folder = job.out.parent
    (folder / "others.jsonl").write_text("".join(json.dumps(own) + "\n" for own in QUESTIONS[7:20]))
    said = Said()
    settings = {"packing": "padded", "eval_share": None, "eval_data": folder / "others.jsonl"}
    run = evenflow.train(replace(job, out=folder / "padded", plan=plan_for(job, pp=2), steps=2, **settings), said)
    sequences = sequences_of(run.out, "padded")
    assert len(sequences) == len(QUESTIONS)
    steps = load_samples(run.out / "samples.jsonl")
    model = AutoModelForCausalLM.from_pretrained(job.model)
    assert run.metrics[0].loss == pytest.approx(mean_loss(model, sequences, steps[1]), rel=1e-6)
    lengths = [[sequences.length(own) for own in steps[step]] for step in (1, 2)]
    tokens = [sum(2 * max(own[at : at + 2]) for at in range(0, 8, 2)) for own in lengths]
    assert [own.tokens for own in run.metrics] == [tokens[0], sum(tokens)]
    assert tokens[0] < 8 * SEQ
    others = Sequences(TokenStore.open(run.out / "eval-tokens"), SEQ, "padded", False)
    assert len(others) == 13
    model = AutoModelForCausalLM.from_pretrained(run.out / "model")
    assert run.metrics[-1].eval_loss == pytest.approx(mean_loss(model, others, range(13)), rel=1e-6)
    assert any("each a document, padded to the longest of its microbatch" in line for line in said.lines)


def test_a_model_that_cannot_keep_documents_apart_is_refused(job: Job, tmp_path: Path) -> None:
    config = {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 384}
    (tmp_path / "bloom").mkdir()
    (tmp_path / "bloom/config.json").write_text(json.dumps(config))
    settings = {"model": str(tmp_path / "bloom"), "out": tmp_path / "out", "check": True}
    with pytest.raises(InputError, match=r"BloomForCausalLM takes no position ids; --packing padded .*would do"):
        evenflow.train(replace(job, **settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"eval_data": "none.jsonl"}, "--eval-share 0.2 would hold a part of --data out"),
        ({"eval_share": None, "eval_data": "none.jsonl"}, "--eval-data: none.jsonl does not exist"),
        ({"eval_share": 1.5}, "--eval-share: should be less than 1, not 1.5"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(job: Job, tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        evenflow.train(replace(job, out=tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
