"""Why: an efficiency that forgot the operator's shape would pass for a roofline, and cut models in the wrong places."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evenflow.cost.roofline import Roofline
from evenflow.spec.accelerators import ACCELERATORS, Accelerator
from evenflow.spec.operators import Attention, LayerOperator, Matmul

# Memory that takes no time: what is left differs by how well a shape fills the device, not by bytes moved.
DEVICE = replace(ACCELERATORS["A100-80GB"], memory_bytes_per_s=float("inf"))
SQUARE = Matmul(4096, 4096, 4096)


def seconds(operator: LayerOperator, device: Accelerator = DEVICE) -> float:
    return Roofline().seconds([operator], device)


@pytest.mark.parametrize("k", [64, 256, 1024])
def test_of_equal_flops_a_product_with_less_to_add_up_takes_longer(k: int) -> None:
    """On as many processors as divide all of these shapes' tiles, so that k alone differs."""
    even = replace(DEVICE, processors=128)
    wider = int((4096**3 // k) ** 0.5)
    shallow = Matmul(wider, wider, k)
    assert shallow.flops == SQUARE.flops
    assert seconds(shallow, even) > 1.04 * seconds(SQUARE, even)
    assert seconds(Matmul(2 * wider, 2 * wider, k // 4), even) > 1.1 * seconds(shallow, even)


def test_of_equal_flops_a_product_of_few_tiles_takes_longer() -> None:
    few = Matmul(256, 256, 4096 * 256)
    assert few.flops == SQUARE.flops
    assert seconds(few) > 5 * seconds(SQUARE), "most processors have nothing to do, however deep it is"
    many = Matmul(64, 64, 4096, count=4096)
    assert many.flops == SQUARE.flops
    assert seconds(many) > 1.5 * seconds(SQUARE), "each fills a part of a tile"


def test_a_tile_too_many_is_a_round_more() -> None:
    whole = Matmul(256 * DEVICE.processors, 128, 4096)
    more = Matmul(256 * (DEVICE.processors + 1), 128, 4096)
    assert more.flops < 1.01 * whole.flops
    assert seconds(more) > 1.3 * seconds(whole)
    wide = replace(DEVICE, processors=2 * DEVICE.processors)
    assert seconds(whole, wide) > 1.05 * seconds(whole), "the same peak in twice the parts is harder to fill"


@pytest.mark.parametrize("is_fused", [True, False])
def test_of_equal_flops_attention_with_narrow_heads_takes_longer(is_fused: bool) -> None:
    narrow, wide = (Attention(1, 4096 // dim, 2048, 2048, dim, dim, is_fused=is_fused) for dim in (32, 128))
    assert narrow.flops == wide.flops
    assert seconds(narrow) > 1.5 * seconds(wide)


def test_attention_that_keeps_its_scores_takes_longer_for_more_heads() -> None:
    """On real memory: as many FLOPs, and a square of scores for each head."""
    device = ACCELERATORS["A100-80GB"]
    few, many = (Attention(1, heads, 2048, 2048, 4096 // heads, 4096 // heads, is_fused=False) for heads in (16, 64))
    assert few.flops == many.flops
    assert seconds(many, device) - seconds(many) == pytest.approx(4 * (seconds(few, device) - seconds(few)))
