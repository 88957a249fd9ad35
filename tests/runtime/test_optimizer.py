"""AdamW's settings, held against torch's own optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evenflow.runtime import Optimizer, OptimizerSettings


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    shapes = {"embed.weight": (5, 4), "block.weight": (4, 4), "block.bias": (4,), "norm.weight": (4,)}
    made = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    for own in made.values():
        own.grad = torch.randn_like(own)
    return made


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_groups_and_clipping_are_those_of_torch(clip_norm: float) -> None:
    ours, theirs = parameters(), parameters()
    settings = OptimizerSettings(0.8, 0.9, 1e-6, 0.3, clip_norm, ("embed.*", "*.nothing"))
    optimizer = Optimizer(ours, list(ours), settings)
    reference = torch.optim.AdamW(
        [
            {"params": [theirs["block.weight"]], "weight_decay": 0.3},
            {"params": [theirs[name] for name in ("embed.weight", "block.bias", "norm.weight")], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.8, 0.9),
        eps=1e-6,
    )
    if clip_norm:
        torch.nn.utils.clip_grad_norm_(theirs.values(), clip_norm)
    reference.step()
    norm = optimizer.step(optimizer.gradient_norms(), 0.01)
    assert norm > 0.5
    for name, own in ours.items():
        torch.testing.assert_close(own, theirs[name], rtol=1e-6, atol=1e-7)
