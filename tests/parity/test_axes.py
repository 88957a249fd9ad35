"""Pipelines, replicas and tied weights in any product: against plain transformers, and against one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from tests.conftest import TINY_LLAMA
from tests.parity.conftest import SplitRun
from tests.parity.test_whole import cut, place_stages, whole_model

MICROBATCHES = 8  # of the whole job
STEPS = 6
TIED = {**TINY_LLAMA, "num_hidden_layers": 6, "tie_word_embeddings": True}
UNTIED = {**TINY_LLAMA, "num_hidden_layers": 6}
SHARED = "model.embed_tokens.weight"
_ALONE: dict[bool, SplitRun] = {}

# pp, dp, ZeRO, tied, schedule, placement. Rows of CI; `make parity` has the rest.
CASES = [
    (4, 1, 0, True, "zb-h1", "own"),
    (2, 1, 0, True, "zb-v", "own"),  # embedding and head on one rank, on two stages
    (2, 1, 0, True, "interleaved", "own"),
    (1, 1, 0, True, "1f1b", "own"),
    (1, 2, 1, False, "1f1b", "own"),
    (2, 2, 0, False, "1f1b", "own"),
    (2, 2, 1, True, "zb-v", "own"),
    (2, 4, 1, False, "zb-h1", "own"),
]
MORE = [
    (2, 1, 0, True, "1f1b", "own"),
    (1, 2, 0, True, "1f1b", "own"),
    (2, 2, 1, True, "1f1b", "own"),
    (4, 2, 0, True, "1f1b", "own"),
    (2, 2, 0, True, "interleaved", "own"),
    (2, 2, 1, False, "zb-v", "own"),
    (3, 2, 1, True, "gpipe", "loop"),
    (4, 2, 1, False, "interleaved", "own"),
    (1, 8, 1, True, "1f1b", "own"),
    (1, 4, 0, False, "1f1b", "own"),
    (2, 4, 0, True, "gpipe", "v"),
]


@cache
def _whole(tied: bool) -> tuple[float, dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    return whole_model(TIED if tied else UNTIED, 3, MICROBATCHES, (2, 16))


def _error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(value - expected) / torch.linalg.vector_norm(expected))


def _gradients(run: SplitRun, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradients of the first step, whole: under ZeRO 1 they come as pieces."""
    found = {name: torch.full_like(own, torch.nan) for name, own in expected.items()}
    for key, piece in run.gradients.items():
        name, _, begin = key.partition("@")
        found[name].view(-1)[int(begin or 0) :][: piece.numel()] = piece.reshape(-1)
    return found


@pytest.mark.parity
@pytest.mark.parametrize(
    ("pp", "dp", "zero", "tied", "schedule", "placement"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.full) for case in MORE)],
)
def test_any_product_equals_one_process(
    run_split: Callable[..., SplitRun], pp: int, dp: int, zero: int, tied: bool, schedule: str, placement: str
) -> None:
    """Loss, gradients and norm of the first step; losses, norms and weights of six; every copy of a weight the same."""
    config: dict[str, Any] = TIED if tied else UNTIED
    stage_rank = place_stages(schedule, placement, pp) if pp > 1 else (0,)
    run = run_split(
        config,
        cut(8, len(stage_rank)),
        stage_rank,
        steps=STEPS,
        schedule=schedule,
        microbatches=MICROBATCHES // dp,
        axes={"pp": pp, "dp": dp},
        zero=zero,
    )
    tolerance = 1e-6 if dp == 1 else 1e-5
    loss, gradients = _whole(tied)
    assert run.losses[0] == pytest.approx(loss, rel=tolerance)
    found = _gradients(run, gradients)
    for name, expected in gradients.items():
        assert _error(found[name], expected) <= tolerance, name
    # A weight that is counted twice, or replicas that are not averaged, would show here first.
    norm = float(torch.linalg.vector_norm(torch.stack([own.double().norm() for own in gradients.values()])))
    assert run.norms[0] == pytest.approx(norm, rel=1e-6)
    if tied not in _ALONE:
        _ALONE[tied] = run_split(config, cut(8, 1), steps=STEPS, microbatches=MICROBATCHES)
    alone = _ALONE[tied]
    assert run.losses == pytest.approx(alone.losses, rel=1e-5)
    assert run.norms == pytest.approx(alone.norms, rel=1e-6 if dp == 1 else 1e-4)
    assert run.weights.keys() == alone.weights.keys()
    assert run.moments.keys() == alone.moments.keys()
    for name, copies in run.copies.items():
        holders = dp * (len({stage_rank[0], stage_rank[-1]}) if tied and name == SHARED else 1)
        assert len(copies) == holders, name
        assert all(torch.equal(copy, copies[0]) for copy in copies), name
        assert _error(copies[0], alone.weights[name]) <= 1e-4, name
        for kind in ("exp_avg", "exp_avg_sq"):
            assert run.moments[f"{kind}/{name}"].shape == copies[0].shape
            assert _error(run.moments[f"{kind}/{name}"], alone.moments[f"{kind}/{name}"]) <= 1e-3, name


@pytest.mark.parity
def test_zero_1_is_zero_0_to_the_last_bits(run_split: Callable[..., SplitRun]) -> None:
    """Which replica updates a weight does not matter: of two replicas a sum has one order."""
    runs = [
        run_split(TIED, cut(8, 2), steps=STEPS, microbatches=4, axes={"pp": 2, "dp": 2}, zero=zero) for zero in (0, 1)
    ]
    assert runs[0].losses[0] == runs[1].losses[0]
    assert runs[0].norms == pytest.approx(runs[1].norms, rel=1e-6)
    for name, weight in runs[0].weights.items():
        assert _error(runs[1].weights[name], weight) <= 1e-6, name
