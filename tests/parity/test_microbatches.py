"""Why: what microbatches differ in, and what is drawn at random, must not make a split model another model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evenflow.errors import InputError
from evenflow.models import NOT_LEARNED, Microbatch, build_stage, draw_weights
from evenflow.program import build_program
from evenflow.runtime import InMemoryNetwork
from tests.conftest import TINY_LLAMA
from tests.execute.alone import SHAPE, make_executor
from tests.parity.conftest import SplitRun
from tests.parity.ranks import microbatch_of
from tests.parity.test_whole import cut

MICROBATCHES = 4
LENGTHS = {"0": 9, "2": 16, "3": 7}  # of microbatches; microbatch 1 has all 16 tokens too
LAYERS = TINY_LLAMA["num_hidden_layers"] + 2
DROPPING = {
    "llama": {**TINY_LLAMA, "attention_dropout": 0.2},
    "gpt2": {
        "model_type": "gpt2",
        "hidden_size": 64,
        "num_hidden_layers": TINY_LLAMA["num_hidden_layers"],
        "num_attention_heads": 4,
        "vocab_size": 96,
        "tie_word_embeddings": False,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.2,
        "attn_pdrop": 0.3,
    },
}


def whole(payload: dict[str, Any], by_tokens: bool = True) -> tuple[float, dict[str, torch.Tensor]]:
    """Plain transformers on the first step: the sum of token losses over their number; or the mean of the means."""
    torch.set_num_threads(1)
    settings = dict(TINY_LLAMA)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    start = build_stage(config, range(LAYERS))
    draw_weights(start, 3)
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(dict(start.named_model_parameters()))
    batches = [microbatch_of(1, own, {"shape": (2, 16), **payload}, config.vocab_size) for own in range(MICROBATCHES)]
    items = sum(int((own.labels if own.labels is not None else own.ids)[:, 1:].ne(-100).sum()) for own in batches)
    total = 0.0
    for own in batches:
        labels = own.ids if own.labels is None else own.labels
        rest = {"num_items_in_batch": items} if by_tokens else {}
        result = model(own.ids, position_ids=own.positions, labels=labels, use_cache=False, **rest)
        divisors = result.logits[:, :-1].logsumexp(-1)[labels[:, 1:] != NOT_LEARNED]
        loss = result.loss + payload.get("z_loss", 0.0) * divisors.square().sum() / items
        if not by_tokens:
            loss = loss.nan_to_num() / MICROBATCHES
        if labels[:, 1:].ne(-100).any():
            loss.backward()
            total += float(loss.detach())
    return total, {name: own.grad for name, own in model.named_parameters() if own.grad is not None}


def worst(run: SplitRun, gradients: dict[str, torch.Tensor]) -> float:
    assert run.gradients.keys() == gradients.keys()
    return max(float((run.gradients[name] - own).norm() / own.norm()) for name, own in gradients.items())


@pytest.mark.parity
@pytest.mark.parametrize(
    "payload",
    [
        {"masked": True},
        {"packed": True},
        {"masked": True, "packed": True, "schedule": "zb-h1", "lengths": LENGTHS, "z_loss": 0.01},
    ],
    ids=["masked", "packed", "all"],
)
def test_masked_packed_and_uneven_microbatches_equal_transformers(
    run_split: Callable[..., SplitRun], payload: dict[str, Any]
) -> None:
    loss, gradients = whole(payload)
    alone = run_split(TINY_LLAMA, cut(LAYERS, 1), steps=3, **payload)
    for ranks in (2, 3):
        run = run_split(TINY_LLAMA, cut(LAYERS, ranks), steps=3, **payload)
        assert run.losses[0] == pytest.approx(loss, rel=1e-6)
        assert worst(run, gradients) <= 1e-6
        assert (run.losses, run.norms) == (alone.losses, alone.norms)


@pytest.mark.parity
def test_lengths_and_z_loss_under_every_axis(run_split: Callable[..., SplitRun]) -> None:
    """Logits in parts, and microbatches that are long for one replica where they are short for the other."""
    payload = {"lengths": LENGTHS, "z_loss": 0.01, "masked": True}
    loss, gradients = whole(payload)
    assert loss > whole({**payload, "z_loss": 0.0})[0] + 0.1
    run = run_split(TINY_LLAMA, cut(LAYERS, 2), microbatches=2, axes={"pp": 2, "dp": 2}, **payload)
    assert (run.losses[0], worst(run, gradients)) == (pytest.approx(loss, rel=1e-5), pytest.approx(0, abs=1e-5))
    run = run_split(TINY_LLAMA, cut(LAYERS, 1), axes={"pp": 1, "tp": 2}, **payload)
    assert (run.losses[0], worst(run, gradients)) == (pytest.approx(loss, rel=1e-5), pytest.approx(0, abs=1e-5))


@pytest.mark.parity
def test_replicas_count_by_the_tokens_of_all(run_split: Callable[..., SplitRun]) -> None:
    """One of them has a microbatch with nothing to learn: the sum over both is no mean of theirs."""
    loss, gradients = whole({"masked": True})
    run = run_split(TINY_LLAMA, cut(LAYERS, 2), microbatches=MICROBATCHES // 2, masked=True, axes={"pp": 2, "dp": 2})
    assert run.losses[0] == pytest.approx(loss, rel=1e-5)
    assert worst(run, gradients) <= 1e-5


@pytest.mark.parity
def test_gradients_are_scaled_by_tokens_and_not_by_microbatches(run_split: Callable[..., SplitRun]) -> None:
    """Uneven microbatches tell them apart: a mean of means would weigh the tokens of a short one more."""
    _, gradients = whole({"masked": True}, by_tokens=False)
    assert worst(run_split(TINY_LLAMA, cut(LAYERS, 2), masked=True), gradients) > 0.01


def test_a_step_with_nothing_to_learn_is_refused_in_a_line() -> None:
    ids = torch.ones(SHAPE, dtype=torch.long)
    executor = make_executor(build_program("1f1b", 1, 2), 0, InMemoryNetwork(1, timeout_s=10).transport(0))
    with pytest.raises(InputError, match="all labels of the step's 2 microbatches are masked") as error:
        executor.run_step(lambda _: Microbatch(ids, torch.full_like(ids, NOT_LEARNED)), 1e-3)
    assert "\n" not in str(error.value)


@pytest.mark.parity
@pytest.mark.parametrize("name", DROPPING)
def test_dropout_is_the_same_under_any_layout(run_split: Callable[..., SplitRun], name: str) -> None:
    config = DROPPING[name]
    alone = run_split(config, cut(LAYERS, 1), steps=3)
    without = {key: 0.0 if isinstance(value, float) and "drop" in key else value for key, value in config.items()}
    assert run_split(without, cut(LAYERS, 1)).losses[0] != alone.losses[0], "there is dropout"
    for ranks, recompute, schedule in (
        (1, "full", "1f1b"),
        (2, "none", "zb-h1"),
        (2, "full", "1f1b"),
        (3, "none", "1f1b"),
        (3, "full", "zb-h1"),
    ):
        run = run_split(config, cut(LAYERS, ranks), steps=3, recompute=recompute, schedule=schedule)
        assert (run.losses, run.norms) == (alone.losses, alone.norms)
        assert all(torch.equal(run.weights[key], own) for key, own in alone.weights.items())
    replicas = run_split(config, cut(LAYERS, 2), steps=3, axes={"pp": 2, "dp": 2}, microbatches=MICROBATCHES // 2)
    assert replicas.losses == pytest.approx(alone.losses, rel=1e-6)
