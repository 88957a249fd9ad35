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
from evenflow.program import SCHEDULES, Backward, Program, WeightBackward, default_stage_rank, place
from tests.conftest import TINY_LLAMA
from tests.parity.conftest import SplitRun
from tests.parity.grid import Case, all_cases, covering, grid, pairs_of
from tests.parity.ranks import program_of, tokens_of

SPLITS = {
    1: [[0, 1, 2, 3, 4, 5]],
    2: [[0, 1, 2], [3, 4, 5]],
    3: [[0, 1], [2, 3, 4], [5]],
    4: [[0], [1, 2], [3, 4], [5]],
}
WIDE = {**TINY_LLAMA, "num_hidden_layers": 6}


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
    tied = hf_config.tie_word_embeddings  # then the head has no weight of its own
    model.load_state_dict(dict(start.named_model_parameters()), strict=not tied)
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


MIXTRAL = {**WIDE, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parity
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_mixture_of_experts_equals_transformers(run_split: Callable[..., SplitRun], ranks: int) -> None:
    """To which expert a token goes may hang on the last bits, so a split that is off in them routes it elsewhere."""
    torch.set_num_threads(1)
    loss, gradients = whole_model(MIXTRAL, 3, 4, (2, 16))
    run = run_split(MIXTRAL, cut(8, ranks))
    assert run.losses[0] == pytest.approx(loss, rel=1e-6)
    assert run.gradients.keys() == gradients.keys()
    assert any(".experts." in name for name in gradients)
    for name, expected in gradients.items():
        error = torch.linalg.vector_norm(run.gradients[name] - expected) / torch.linalg.vector_norm(expected)
        assert error <= 1e-6, name


STEPS = 10
_ALONE: dict[int, SplitRun] = {}  # by microbatches


def _in_order(program: Program) -> bool:
    """Whether every stage adds up its weight gradients in the order of the microbatches, as one process does."""
    for actions in program.compute_order():
        for stage in {own.stage for own in actions}:
            added = [
                own.microbatch for own in actions if own.stage == stage and type(own) in (Backward, WeightBackward)
            ]
            if added != sorted(added):
                return False
    return True


@pytest.mark.parity
@pytest.mark.parametrize("case", grid())
def test_equals_transformers_and_to_the_bit_one_process(run_split: Callable[..., SplitRun], case: Case) -> None:
    """Loss and gradients of the first step against plain transformers; ten steps against one process, bit by bit."""
    layout = dict(case)
    schedule, microbatches = layout.pop("schedule"), layout["microbatches"]
    stage_rank = place_stages(schedule, layout.pop("placement"), layout.pop("ranks"))
    run = run_split(WIDE, cut(8, len(stage_rank)), stage_rank, steps=STEPS, schedule=schedule, **layout)
    loss, gradients = _whole(microbatches)
    assert run.losses[0] == pytest.approx(loss, rel=1e-6)
    assert run.gradients.keys() == gradients.keys()
    for name, expected in gradients.items():
        error = torch.linalg.vector_norm(run.gradients[name] - expected) / torch.linalg.vector_norm(expected)
        assert error <= 1e-6, name
    if microbatches not in _ALONE:
        _ALONE[microbatches] = run_split(WIDE, cut(8, 1), steps=STEPS, microbatches=microbatches)
    alone = _ALONE[microbatches]
    assert _in_order(program_of(schedule, stage_rank, microbatches)), "every schedule of ours keeps the order"
    assert run.losses == alone.losses
    assert run.norms == alone.norms
    assert all(torch.equal(run.weights[name], alone.weights[name]) for name in alone.weights)


@pytest.mark.parity
def test_ci_runs_every_pair_of_values() -> None:
    cases = all_cases()
    chosen = covering(cases)
    assert set().union(*map(pairs_of, chosen)) == set().union(*map(pairs_of, cases))
    assert len(chosen) < len(cases) / 4
    assert {case["schedule"] for case in chosen} == {*SCHEDULES, "auto"}


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
