"""Every way that tensors travel gives the bits of one process: by tags, by order alone on each edge, through the host.

The groups of the edges are those that NCCL gets, here with gloo and without tags; what is staged passes through host
memory as it does from a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.parity.conftest import SplitRun
from tests.parity.test_whole import WIDE, cut, place_stages

CASES = [
    ("1f1b", "own", 3, 5),
    ("gpipe", "v", 2, 5),
    ("interleaved", "own", 2, 5),
    ("interleaved", "uneven", 3, 5),
    ("zb-h1", "own", 4, 5),
    ("zb-v", "own", 3, 5),
    ("auto", "v", 2, 5),
]
# Stages that take their microbatches in orders of their own: a message taken for its neighbour would show.
ORDERS = {
    "last stage": ((0, 1), ["0F0 0F1 0F2 0B1 0F3 0B0 0F4 0B2 0B3 0B4", "1F1 1B1 1F0 1B0 1F2 1B2 1F4 1B4 1F3 1B3"]),
    "v": (
        (0, 1, 1, 0),
        [
            "0F0 0F1 0F2 0F3 0F4 3F1 3B1 3F0 3B0 3F2 3B2 3F4 3B4 3F3 3B3 0B1 0B0 0B2 0B4 0B3",
            "1F0 1F1 1F2 1F3 1F4 2F1 2F0 2F2 2F4 2F3 2B1 1B1 2B0 1B0 2B2 1B2 2B4 1B4 2B3 1B3",
        ],
    ),
}


@pytest.mark.parity
@pytest.mark.parametrize("transport", ["edges", "staged"])
def test_bits_do_not_depend_on_the_transport(run_split: Callable[..., SplitRun], transport: str) -> None:
    alone = run_split(WIDE, cut(8, 1), microbatches=5, steps=2)
    for schedule, placement, ranks, microbatches in CASES:
        placed = place_stages(schedule, placement, ranks)
        split = cut(8, len(placed))
        run = run_split(WIDE, split, placed, microbatches=microbatches, schedule=schedule, transport=transport, steps=2)
        assert run.losses == alone.losses, (schedule, placement)
        assert all(torch.equal(run.weights[name], alone.weights[name]) for name in alone.weights), (schedule, placement)


@pytest.mark.parity
@pytest.mark.parametrize("name", ORDERS)
def test_orders_that_differ_between_stages(run_split: Callable[..., SplitRun], name: str) -> None:
    placed, order = ORDERS[name]
    split = cut(8, len(placed))
    tagged, edges, staged = (
        run_split(WIDE, split, placed, microbatches=5, order=order, transport=transport)
        for transport in ("gloo", "edges", "staged")
    )
    alone = run_split(WIDE, cut(8, 1), microbatches=5)
    assert tagged.losses == alone.losses
    for name, expected in alone.gradients.items():  # added up in another order, so their last bits may differ
        error = torch.linalg.vector_norm(tagged.gradients[name] - expected) / torch.linalg.vector_norm(expected)
        assert error <= 1e-6, name
    for other in (edges, staged):
        assert other.losses == tagged.losses
        assert all(torch.equal(other.gradients[name], own) for name, own in tagged.gradients.items())


@pytest.mark.parity
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved"])
def test_host_buffers_do_not_grow_with_microbatches(run_split: Callable[..., SplitRun], schedule: str) -> None:
    placed = place_stages(schedule, "own", 3)
    few, many = (
        run_split(
            WIDE, cut(8, len(placed)), placed, microbatches=microbatches, schedule=schedule, transport="staged"
        ).host_buffers
        for microbatches in (12, 36)
    )
    assert many == few
    assert min(few) > 0
