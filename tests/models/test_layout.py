"""Hidden states as they lie in models, and as they travel."""

from __future__ import annotations

import pytest
import torch

from evenflow.models.layout import layout_of

BATCH, SEQ = 3, 7


@pytest.mark.parametrize(
    ("shape", "width"),
    [((3, 7, 8), 8), ((7, 3, 8), 8), ((21, 8), 8), ((3, 7, 4, 8), 32), ((4, 3, 7, 8), 32), ((4, 7, 3, 8), 32)],
)
def test_every_layout_travels_by_tokens_and_comes_back(shape: tuple[int, ...], width: int) -> None:
    layout = layout_of(shape, (BATCH, SEQ))
    assert layout is not None
    assert layout.width == width
    hidden = torch.randn(shape)
    travelling = layout.travelling(hidden, BATCH)
    assert travelling.shape == (BATCH, SEQ, width)
    assert torch.equal(layout.entering(travelling), hidden)


def test_the_sequence_may_come_first() -> None:
    layout = layout_of((7, 3, 8), (BATCH, SEQ))
    assert layout is not None
    hidden = torch.randn(7, 3, 8)
    assert torch.equal(layout.travelling(hidden, BATCH)[1, 5], hidden[5, 1])


def test_what_has_no_tokens_has_no_layout() -> None:
    assert layout_of((5, 8), (BATCH, SEQ)) is None
