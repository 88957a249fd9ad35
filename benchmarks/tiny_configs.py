"""Tiny configurations of every causal LM type that the installed transformers has, by what their fields are called.

Two of each: as the class makes it, and with what it leaves at rest switched on (multipliers that are 1, caps and
windows that are off, biases, shared experts, the other way to tie embeddings). Fields are told by name; there is no
list of families.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from benchmarks.settings import configured
from evenflow.errors import InputError
from evenflow.models import dropouts

_MULTIPLIER = re.compile(r"(multiplier|multipliers|_scale|scaling|scaling_factor|scale_emb|residual_scale)$")
_CAP = re.compile(r"soft_?cap(ping)?$")
_SWITCHES = re.compile(
    r"^(alibi|learned_pos_emb|use_learned_position_embeddings|attention_bias|mlp_bias|qkv_bias|use_bias|use_qkv_bias"
    r"|add_bias_linear|lm_head_bias|use_qk_norm|qk_layernorm|use_sliding_window|scale_embedding|layernorm_embedding"
    r"|use_parallel_residual|scale_attn_by_inverse_layer_idx|attention_out_bias|enable_moe_block|mup_enabled"
    r"|norm_topk_prob|new_decoder_architecture|apply_residual_connection_post_layernorm|use_post_norm"
    r"|attention_k_eq_v|use_double_wide_mlp|is_moe)$"
)
_SHARED = re.compile(r"(n|num)_shared_experts?$|^shared_intermediate_size$")
_WINDOW = 8
_LONGEST_TEXT = 40


def types() -> tuple[list[str], dict[str, str]]:
    """The decoder-only types, and the others with the rule that leaves them out."""
    taken: list[str] = []
    left_out: dict[str, str] = {}
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = default_config(name)
        except Exception as error:  # a class may not do without values of its own
            left_out[name] = f"its configuration has no defaults ({type(error.__cause__ or error).__name__})"
            continue
        reason = _left_out(name, config)
        if reason is None:
            taken.append(name)
        else:
            left_out[name] = reason
    return taken, left_out


def build_config(name: str, changes: Mapping[str, Any], needed: bool = False) -> PretrainedConfig:
    """A type's defaults with fields changed; with `needed`, what is None though its model needs it has a value.

    Raises:
        InputError: there is no such type, or its class does not take a change.
    """
    config = configured(name, changes)
    for part in (config, config.get_text_config()):
        for field in dropouts(part):
            if field not in changes:
                setattr(part, field, 0.0)
    return filled(config, changes) if needed else config


def default_config(name: str) -> PretrainedConfig:
    """A type's own defaults, without dropout."""
    return build_config(name, {})


# What a class leaves None though its model cannot do without, by the names of fields.
_NEEDED: tuple[tuple[str, int], ...] = (
    (r"(^|_)head_dim$", 16),
    (r"(num|n)_(attention|key_value)_heads$|n_heads?$", 4),
    (r"rope_theta$", 10000),
    (r"(per_tok(en)?|topk|top_k)$", 2),
    (r"_group$", 1),
    (r"experts$", 8),
    (r"_budget$", 8),
    (r"_ratio$", 2),
    (r"kv_heads$", 1),
    (r"(_dim|_size|_rank)$", 32),
    (r"token_id$", 0),
)


def filled(config: PretrainedConfig, given: Container[str] = ()) -> PretrainedConfig:
    """A configuration whose sizes that are None have numbers; but not those that are `given` so."""
    changed = copy.deepcopy(config)
    for name, value in vars(changed.get_text_config()).items():
        size = next((size for pattern, size in _NEEDED if re.search(pattern, name)), None)
        if value is None and size is not None and not name.startswith("_") and name not in given:
            setattr(changed.get_text_config(), name, size)
    text = changed.get_text_config()
    kinds = getattr(text, "layer_types", ())
    rope = getattr(text, "rope_parameters", None)
    if kinds is None:
        text.layer_types = ["full_attention" if layer % 2 else "conv" for layer in range(text.num_hidden_layers)]
    elif kinds and rope == {}:
        text.rope_parameters = {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in set(kinds)}
    attention = getattr(text, "attn_config", None)
    if isinstance(attention, PretrainedConfig) and not hasattr(attention, "rope_theta"):
        attention.rope_theta = 10000.0
    if isinstance(attention, PretrainedConfig) and getattr(attention, "clip_qkv", 0) is None:
        attention.clip_qkv = 8.0
    return changed


def added(config: PretrainedConfig, plain: PretrainedConfig) -> str:
    """The fields that a filled configuration has otherwise than `plain`, with their values."""
    return ", ".join(_added(config.get_text_config().to_dict(), plain.get_text_config().to_dict(), ""))


def _added(now: Mapping[str, Any], was: Mapping[str, Any], outer: str) -> Iterator[str]:
    for name, value in now.items():
        before = was.get(name)
        if value == before:
            continue
        if isinstance(value, dict) and isinstance(before, dict) and before:
            yield from _added(value, before, f"{outer}{name}.")
        else:
            text = repr(value)
            yield f"{outer}{name} = {text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + '...'}"


def with_quirks(
    name: str, config: PretrainedConfig, needed: bool = False
) -> Iterator[tuple[str, Any, PretrainedConfig | None]]:
    """What can be switched on, one at a time: its field, its value, and a type's config with it alone.

    The class makes each anew, as what it works out of a field (kinds of layers, say) has to follow; None where it does
    not take the value.

    Args:
        name: the type's.
        config: what it is without, by which fields are at rest.
        needed: as `build_config` has it.
    """
    for field, value in quirks(config.get_text_config()):
        try:
            yield field, value, build_config(name, {field: value}, needed)
        except InputError:
            yield field, value, None


def quirks(config: PretrainedConfig) -> list[tuple[str, Any]]:
    """Fields at rest, with a value that is not."""
    found: list[tuple[str, Any]] = []
    for name, value in vars(config).items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if _MULTIPLIER.search(name) and number and value == 1.0:
            found.append((name, 0.7))
        elif _MULTIPLIER.search(name) and isinstance(value, list) and value and set(value) == {1.0}:
            found.append((name, [0.7] * len(value)))
        elif _CAP.search(name) and (value is None or number):
            found.append((name, 3.0))
        elif name == "sliding_window" and value is None:
            found.append((name, _WINDOW))
        elif value is False and _SWITCHES.search(name):
            found.append((name, True))
        elif _SHARED.search(name) and value in (None, 0):
            found.append((name, 32 if name.endswith("size") else 1))
        elif name == "word_embed_proj_dim":
            found.append((name, config.hidden_size // 2))
        elif name == "logit_scale" and value is None:
            found.append((name, 0.7))
        elif name == "tie_word_embeddings":
            found.append((name, not value))
    return found


def _left_out(name: str, config: PretrainedConfig) -> str | None:
    """Why a type is no decoder-only language model; read off its config and its class."""
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if config.is_encoder_decoder:
        return "the decoder of an encoder-decoder model (is_encoder_decoder)"
    if name in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "an encoder that is trained on masked tokens (it has a masked LM class)"
    if "labels" not in inspect.signature(model.forward).parameters:
        return f"{model.__name__} computes no loss (its forward takes no labels)"
    media = [part for part in getattr(config, "sub_configs", {}) if re.search(r"vision|audio|vq|depth", part)]
    if media:
        return f"reads more than text ({', '.join(media)})"
    return None
