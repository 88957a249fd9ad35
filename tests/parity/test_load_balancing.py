"""A load-balancing loss of a whole model on one rank: as transformers has it, for replicas and shards of it too."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from tests.parity.conftest import SplitRun
from tests.parity.test_axes import _error
from tests.parity.test_tensor_parallel import FAMILIES
from tests.parity.test_whole import cut, whole_model

MICROBATCHES = 4
MIXTRAL = {**FAMILIES["mixtral"], "output_router_logits": True, "router_aux_loss_coef": 0.1}
LAYERS = MIXTRAL["num_hidden_layers"] + 2


@cache
def _whole() -> tuple[float, dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    return whole_model(MIXTRAL, 3, MICROBATCHES, (2, 16))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("axes", "zero", "tolerance"),
    [
        ({}, 0, 1e-6),
        pytest.param({"dp": 2}, 1, 1e-5, marks=pytest.mark.full),
        ({"tp": 2}, 0, 1e-5),
        pytest.param({"dp": 2, "tp": 2}, 0, 1e-5, marks=pytest.mark.full),
    ],
    ids=lambda own: "-".join(map(str, own)) or "alone" if isinstance(own, dict) else None,
)
def test_it_is_trained_with_where_one_rank_has_all_blocks(
    run_split: Callable[..., SplitRun], axes: dict[str, int], zero: int, tolerance: float
) -> None:
    loss, gradients = _whole()
    plain, _ = whole_model({**MIXTRAL, "output_router_logits": False}, 3, MICROBATCHES, (2, 16))
    assert loss > plain + 0.05
    payload: dict[str, Any] = {"axes": {"pp": 1, **axes}} if axes else {}
    run = run_split(MIXTRAL, cut(LAYERS, 1), microbatches=MICROBATCHES // axes.get("dp", 1), zero=zero, **payload)
    assert run.losses[0] == pytest.approx(loss, rel=tolerance)
    for name, expected in gradients.items():
        pieces = [own for key, own in run.gradients.items() if key.partition("@")[0] == name]
        found = torch.cat([own.reshape(-1) for own in pieces]).view_as(expected)
        assert _error(found, expected) <= tolerance, name
