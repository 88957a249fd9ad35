"""Split equals whole: against plain transformers in one process, and bitwise between layouts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evenflow.models import build_stage, draw_weights
from evenflow.program import SCHEDULES, default_stage_rank, place
from tests.conftest import TINY_LLAMA
from tests.parity.conftest import SplitRun
from tests.parity.ranks import tokens_of

SPLITS = {
    1: [[0, 1, 2, 3, 4, 5]],
    2: [[0, 1, 2], [3, 4, 5]],
    3: [[0, 1], [2, 3, 4], [5]],
    4: [[0], [1, 2], [3, 4], [5]],
}
WIDE = {**TINY_LLAMA, "num_hidden_layers": 6}

# Where stages are: as the schedule has them, and for those that take any, several a rank in loop, in V, and uneven.
PLACEMENTS: dict[str, list[str]] = {
    name: ["own", *(["loop", "v", "uneven"] if not schedule.exactly else [])] for name, schedule in SCHEDULES.items()
} | {"auto": ["own", "v"]}
COVERING = {
    ("1f1b", "own", 2, 1),
    ("1f1b", "own", 3, 4),
    ("gpipe", "own", 3, 5),
    ("gpipe", "v", 2, 4),
    ("interleaved", "loop", 2, 5),
    ("interleaved", "uneven", 3, 4),
    ("interleaved", "own", 4, 8),
    ("zb-h1", "own", 4, 5),
    ("zb-h2", "own", 3, 8),
    ("zb-1p", "uneven", 2, 8),
    ("zb-1p", "own", 2, 5),
    ("zb-2p", "own", 4, 4),
    ("zb-2p", "loop", 3, 1),
    ("zb-v", "own", 2, 4),
    ("zb-v", "own", 4, 5),
    ("auto", "own", 3, 5),
    ("auto", "v", 2, 8),
}
GRID = [
    pytest.param(*case, marks=() if case in COVERING else pytest.mark.full)
    for name, placements in PLACEMENTS.items()
    for placement in placements
    for case in ((name, placement, ranks, microbatches) for ranks in (2, 3, 4) for microbatches in (1, 4, 5, 8))
]


def place_stages(schedule: str, placement: str, ranks: int) -> tuple[int, ...]:
    """The rank of each stage."""
    if placement == "own":
        return default_stage_rank("zb-1p" if schedule == "auto" else schedule, ranks)
    if placement == "uneven":  # one stage more on the first rank
        return place("loop", ranks, ranks + 1)
    return place("v" if placement == "v" else "loop", ranks, 2 * ranks)


def cut(layers: int, stages: int) -> list[list[int]]:
    """Layers over stages, the first stages one more where they do not divide."""
    ends = [0]
    for stage in range(stages):
        ends.append(ends[-1] + layers // stages + (stage < layers % stages))
    return [list(range(first, end)) for first, end in pairwise(ends)]


def whole_model(
    config: dict[str, Any], seed: int, microbatches: int, shape: tuple[int, int], device: str = "cpu"
) -> tuple[float, dict]:
    """Loss and gradients of plain transformers: the model as it is, one process, one backward a microbatch."""
    settings = dict(config)
    hf_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    start = build_stage(hf_config, range(config["num_hidden_layers"] + 2))
    draw_weights(start, seed)
    model = AutoModelForCausalLM.from_config(hf_config)
    model.load_state_dict(dict(start.named_model_parameters()))
    model.to(device)
    total = 0.0
    for microbatch in range(microbatches):
        ids = tokens_of(1, microbatch, *shape, config["vocab_size"]).to(device)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss / microbatches
        loss.backward()
        total += float(loss.detach())
    return total, {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}


@cache
def _whole(microbatches: int) -> tuple[float, dict]:
    torch.set_num_threads(1)
    return whole_model(WIDE, 3, microbatches, (2, 16))


@pytest.mark.parity
@pytest.mark.parametrize(("schedule", "placement", "ranks", "microbatches"), GRID)
def test_equals_transformers(
    run_split: Callable[..., SplitRun], schedule: str, placement: str, ranks: int, microbatches: int
) -> None:
    loss, gradients = _whole(microbatches)
    stage_rank = place_stages(schedule, placement, ranks)
    run = run_split(WIDE, cut(8, len(stage_rank)), stage_rank, microbatches=microbatches, schedule=schedule)
    assert run.losses[0] == pytest.approx(loss, rel=1e-6)
    assert run.gradients.keys() == gradients.keys()
    for name, expected in gradients.items():
        error = torch.linalg.vector_norm(run.gradients[name] - expected) / torch.linalg.vector_norm(expected)
        assert error <= 1e-6, name


@pytest.mark.parity
def test_ten_steps_are_bitwise_equal_under_every_schedule(run_split: Callable[..., SplitRun]) -> None:
    """Weight gradients are added in the same microbatch order by one kernel, whole or in halves."""
    alone = run_split(WIDE, cut(8, 1), steps=10, microbatches=5)
    for schedule, placement, ranks in (
        ("gpipe", "own", 2),
        ("interleaved", "own", 2),
        ("zb-h1", "own", 3),
        ("zb-h2", "own", 2),
        ("zb-1p", "v", 2),
        ("zb-v", "own", 2),
        ("auto", "own", 4),
    ):
        stage_rank = place_stages(schedule, placement, ranks)
        split = run_split(WIDE, cut(8, len(stage_rank)), stage_rank, steps=10, microbatches=5, schedule=schedule)
        assert split.losses == alone.losses, schedule
        assert split.norms == alone.norms, schedule
        assert all(torch.equal(split.weights[name], alone.weights[name]) for name in alone.weights), schedule


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
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb-h1", "zb-h2"])
def test_receive_buffers_do_not_grow_with_microbatches(run_split: Callable[..., SplitRun], schedule: str) -> None:
    stage_rank = place_stages(schedule, "own", 3)
    few, many = (
        run_split(WIDE, cut(8, len(stage_rank)), stage_rank, microbatches=microbatches, schedule=schedule)
        for microbatches in (12, 36)
    )
    assert many.buffers == few.buffers
