"""Split equals whole: against plain transformers in one process, and bitwise between layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evenflow.models import build_stage, draw_weights
from evenflow.program import SCHEDULES
from tests.conftest import TINY_LLAMA
from tests.parity.conftest import SplitRun
from tests.parity.ranks import tokens_of

SPLITS = {
    1: [[0, 1, 2, 3, 4, 5]],
    2: [[0, 1, 2], [3, 4, 5]],
    3: [[0, 1], [2, 3, 4], [5]],
    4: [[0], [1, 2], [3, 4], [5]],
}
# Every number of ranks with both schedules, and every number of microbatches; the rest of the grid is `full`.
COVERING = {(2, 1, "1f1b"), (2, 5, "gpipe"), (3, 4, "1f1b"), (3, 5, "gpipe"), (4, 8, "1f1b"), (4, 4, "gpipe")}
GRID = [
    pytest.param(
        ranks,
        microbatches,
        schedule,
        marks=() if (ranks, microbatches, schedule) in COVERING else pytest.mark.full,
    )
    for ranks in (2, 3, 4)
    for microbatches in (1, 4, 5, 8)
    for schedule in SCHEDULES
]


def whole_model(config: dict[str, Any], seed: int, microbatches: int, shape: tuple[int, int]) -> tuple[float, dict]:
    """Loss and gradients of plain transformers: the model as it is, one process, one backward a microbatch."""
    settings = dict(config)
    hf_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    start = build_stage(hf_config, range(config["num_hidden_layers"] + 2))
    draw_weights(start, seed)
    model = AutoModelForCausalLM.from_config(hf_config)
    model.load_state_dict(dict(start.named_model_parameters()))
    total = 0.0
    for microbatch in range(microbatches):
        ids = tokens_of(1, microbatch, *shape, config["vocab_size"])
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss / microbatches
        loss.backward()
        total += float(loss.detach())
    return total, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parity
@pytest.mark.parametrize(("ranks", "microbatches", "schedule"), GRID)
def test_equals_transformers(run_split: Callable[..., SplitRun], ranks: int, microbatches: int, schedule: str) -> None:
    torch.set_num_threads(1)
    loss, gradients = whole_model(TINY_LLAMA, 3, microbatches, (2, 16))
    run = run_split(TINY_LLAMA, SPLITS[ranks], microbatches=microbatches, schedule=schedule)
    assert run.losses[0] == pytest.approx(loss, rel=1e-6)
    assert run.gradients.keys() == gradients.keys()
    for name, expected in gradients.items():
        error = torch.linalg.vector_norm(run.gradients[name] - expected) / torch.linalg.vector_norm(expected)
        assert error <= 1e-6, name


@pytest.mark.parity
def test_twenty_clipped_steps_are_bitwise_equal(run_split: Callable[..., SplitRun]) -> None:
    alone = run_split(TINY_LLAMA, SPLITS[1], steps=20)
    assert min(alone.norms) > 1, "the steps must be clipped for this test to mean anything"
    for ranks in (2, 3, 4):
        split = run_split(TINY_LLAMA, SPLITS[ranks], steps=20)
        assert split.losses == alone.losses
        assert split.norms == alone.norms
        assert split.weights.keys() == alone.weights.keys()
        assert all(torch.equal(split.weights[name], alone.weights[name]) for name in alone.weights)


@pytest.mark.parity
def test_receive_buffers_do_not_grow_with_microbatches(run_split: Callable[..., SplitRun]) -> None:
    few = run_split(TINY_LLAMA, SPLITS[3], microbatches=6)
    many = run_split(TINY_LLAMA, SPLITS[3], microbatches=24)
    assert many.buffers == few.buffers
