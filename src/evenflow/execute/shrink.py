"""A small copy of an architecture with its own quirks kept, so that a claim about it can be tried in a second."""

from __future__ import annotations

import copy

from transformers import PretrainedConfig

_LAYERS = 4
_VOCABULARY = 128
_WIDTHS = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
_HEAD_DIM = 16


def dropouts(config: PretrainedConfig) -> dict[str, float]:
    """A config's dropout probabilities by name; those of heads that a causal LM has not are left out."""
    return {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, float)
        and ("dropout" in name or name.endswith("pdrop"))
        and not name.startswith(("classifier", "summary"))
    }


def shrink(config: PretrainedConfig, widths: bool = True) -> PretrainedConfig:
    """Fewer blocks and a smaller vocabulary; with `widths` narrower too. Multipliers and switches stay.

    Dropout is switched off: two runs of it never agree.
    """
    small = copy.deepcopy(config)
    layers: int = config.num_hidden_layers
    for name, value in list(vars(small).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(small, name, value[:_LAYERS])
        if name.endswith("token_id"):
            setattr(small, name, None if name.startswith("pad") else 0)
    for name in dropouts(config):
        setattr(small, name, 0.0)
    small.num_hidden_layers = min(layers, _LAYERS)
    small.vocab_size = min(config.vocab_size, _VOCABULARY)
    if widths:
        _narrow(small, config)
    return small


def _narrow(small: PretrainedConfig, config: PretrainedConfig) -> None:
    for name, size in _WIDTHS.items():
        if isinstance(getattr(config, name, None), int):
            setattr(small, name, min(getattr(config, name), size))
    key_heads, heads = getattr(config, "num_key_value_heads", None), config.num_attention_heads
    if isinstance(key_heads, int):
        small.num_key_value_heads = small.num_attention_heads if key_heads == heads else 2 if key_heads > 1 else 1
    if isinstance(getattr(config, "head_dim", None), int):
        small.head_dim = _HEAD_DIM
