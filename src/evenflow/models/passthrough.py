"""Modules that stand where another stage's layers would be: one hands its input on, one adds nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PassThrough(nn.Module):
    """Returns its first argument.

    It keeps the plain attributes of the module that it stands for, since models read some off their layers
    (`layer.attention_type`, say).
    """

    def __init__(self, stands_for: nn.Module) -> None:
        super().__init__()
        for name, value in vars(stands_for).items():
            if not name.startswith("_") and isinstance(value, bool | int | float | str | None):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Hand the hidden states on, given by position or by name."""
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        return hidden


class AddsNothing(nn.Module):
    """Stands for a learned embedding that a model adds to its token embedding (positions, say): the first stage did."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Zero, of no dimensions, so that adding it changes nothing."""
        del args, kwargs
        return torch.zeros(())
