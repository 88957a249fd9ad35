"""z-loss: a share of the squared log of the softmax's divisor beside the loss of each token, in any layout.

One function makes both from the logits, whole or in parts, and keeps no more for the backward than the loss alone does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig
from transformers.loss.loss_utils import ForCausalLMLoss

from evenflow.errors import InputError
from evenflow.models.anatomy import build_skeleton, dissect
from evenflow.models.shared_loss import shared_loss
from evenflow.models.stage import Stage
from evenflow.runtime import TensorGroup


def check_z_loss(config: PretrainedConfig) -> None:
    """Refuse a model whose loss is its own code's, which takes no z-loss.

    Raises:
        InputError: it is.
    """
    skeleton = build_skeleton(config)
    if not (dissect(skeleton).calls_loss and skeleton.loss_function is ForCausalLMLoss):
        raise InputError(
            f"{type(skeleton).__name__} makes its loss otherwise than by transformers' own of a causal LM, so there is "
            "nothing to add a z-loss to; --z-loss 0 would do"
        )


def add_z_loss(stage: Stage, weight: float) -> None:
    """Have a stage's loss hold so much z-loss while it trains; an evaluation's is the loss alone.

    Args:
        stage: the stage, shared out already where it is.
        weight: of the squares; with 0 the loss stays the model's own.
    """
    if not (weight and stage.is_last):
        return
    plain, sharing = stage.model.loss_function, stage.sharing
    group, begin = (
        (_ALONE, 0) if sharing is None or sharing.logits_begin is None else (sharing.group, sharing.logits_begin)
    )
    trained = partial(shared_loss, group, begin, z_loss=weight)

    def loss(*args: Any, **kwargs: Any) -> Any:
        return (trained if stage.training else plain)(*args, **kwargs)

    stage.model.loss_function = loss


class _Alone:
    """A group of one, which has all columns of its logits."""

    size = 1
    index = 0

    def add(self, tensor: Tensor) -> None:
        """Nothing is elsewhere."""

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """Its own."""
        return [tensor]


_ALONE: TensorGroup = _Alone()
