"""Dropout that is the same under every layout: each layer draws from a seed of its own.

A whole model draws one layer after another from one generator, so what a layer draws would depend on the layers before
it on its rank. Here the generators are set anew where a layer begins, from what names the work: seed and step (one
number for all), the microbatch's number in the global batch, and the layer. A recomputed block draws again from the
state in which it began.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PretrainedConfig


def dropouts(config: PretrainedConfig) -> dict[str, float]:
    """A config's and its text config's dropout probabilities by name; not those of heads that a causal LM has not."""
    return {
        name: value
        for name, value in {**vars(config), **vars(config.get_text_config())}.items()
        if isinstance(value, float)
        and ("dropout" in name or name.endswith(("pdrop", "layerdrop", "_jitter_noise")))
        and not name.startswith(("classifier", "summary"))
    }


def drops_out(model: nn.Module, config: PretrainedConfig) -> bool:
    """Whether anything in a model may draw at random while it trains."""
    return any(value > 0 for value in dropouts(config).values()) or any(
        isinstance(module, _DropoutNd) and module.p > 0 for module in model.modules()
    )


def silence(model: nn.Module) -> None:
    """Have dropout modules, whose share no field of the configuration may name, drop nothing."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0


def draw_of(*parts: int) -> int:
    """One seed of several numbers, as unlike its neighbours' as any."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


class LayerSeeds:
    """Sets the generators where a layer of a stage begins.

    Attributes:
        draw: of the microbatch under way; None where nothing is to be seeded.
    """

    def __init__(self) -> None:
        self.draw: int | None = None

    def begin(self, layer: int) -> None:
        """From now on what is drawn is this layer's."""
        if self.draw is not None:
            torch.manual_seed(draw_of(self.draw, layer))

    def before(self, module: nn.Module, layer: int) -> None:
        """Have `layer` begin with the forward of `module`."""
        module.register_forward_pre_hook(lambda *_: self.begin(layer))

    def after(self, module: nn.Module, layer: int) -> None:
        """Have `layer` begin when the forward of `module` has ended."""
        module.register_forward_hook(lambda *_: self.begin(layer))
