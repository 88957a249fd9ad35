"""A small copy of an architecture with its own quirks kept, so that a claim about it can be tried in a second.

What a field means is told by its name, which configurations share far beyond a family: widths keep their ratio to the
hidden size, heads theirs to each other, and of the blocks some of each kind stay.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

_LEAST_LAYERS, _MOST_LAYERS = 4, 8
_VOCABULARY = 128
_HIDDEN = 64
_HEADS = 4

# What is cut to a size, by the names of fields; the first that fits decides.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"qk_rope_head_dim|rotary_dim|rope_dim", 8),
    (r"qk_nope_head_dim|v_head_dim", 16),
    (r"qk_head_dim", 24),
    (r"(head_?dim|d_head|dim_head|head_size|kv_channels|d_rel)$", 16),
    (r"(lora_rank|_rank|lowrank)$", 16),
    (r"^time_step_rank$|dt_rank$", 8),
    (r"index_n_heads", 2),
    (r"(index_topk|index_block_size)$", 4),
    (r"index_topk_blocks", 2),
    (r"(experts_per_tok(en)?|topk|moe_k|num_selected_experts)$|moe_top_k$", 2),
    (r"^topk_group$", 1),
    (r"^(n_group|num_expert_group)$", 2),
    (r"shared_experts?$", 2),
    (r"experts$|^zero_expert_num$", 8),
    (r"(d_state|state_size)$", 8),
    (r"(mamba_n_groups|mamba_ngroups|^n_groups|o_groups)$", 2),
    (r"^(mamba_)?chunk_size$|^block_size$", 8),
    (r"(sliding_window(_size)?|window_size|attention_chunk_size|local_attention|window|rel_extent|window_len)$", 8),
    (r"(^|_)vocab_size|^ngram_vocab|unpadded_vocab|group_vocab", _VOCABULARY),
    (r"(_period|_interval|every_n_layers|layer_group_size|_sparse_step|layers_per_attn_res_block)$", 2),
    (r"(_offset|first_k_dense_replace|num_dense_layers|num_kv_shared_layers|layer_start_index)$", 1),
    (r"(num_layers_per_stack|n_input_layers|n_output_layers|n_recurrent_layers)$", 2),
    (r"max_window_layers", 2),
)
_WIDTHS = re.compile(
    r"(hidden_size|intermediate_size|intermediate_size_mlp|ffn_dim|ffn_hidden_size|d_ff|dff|dim_ff|n_inner|d_inner"
    r"|d_model|n_embd|embedding_dim|proj_dim|lru_width|d_ssm|embed_dim|dim_model_base|router_hidden_size"
    r"|hidden_size_per_layer_input)$"
)
_HEAD_COUNTS = re.compile(r"(^|_)(n|num)_(\w+_)?heads?$|attention_heads$|kv_heads$|query_groups$|value_heads$|^n_head$")
_LAYER_INDICES = re.compile(r"(layers|layer_ids|idxs|indices)$")
_LAYER_COUNTS = re.compile(r"^(num_hidden_layers|num_layers|n_layers?|num_blocks|decoder_layers|layer_end_index)$")


def shrink(config: PretrainedConfig, widths: bool = True) -> PretrainedConfig:
    """Fewer blocks and a smaller vocabulary; with `widths` narrower too. Multipliers, switches and dropout stay."""
    small = copy.deepcopy(config)
    if hasattr(small, "allow_global_per_layer_attribute_access"):
        small.allow_global_per_layer_attribute_access = True
    for part in (small, small.get_text_config()):
        kept = _kept_layers(part)
        for name in [name for name in vars(part) if name.endswith("token_id")]:
            _set_token(part, name)
        _fewer_layers(part, kept)
        if widths:
            _narrow(part)
        elif isinstance(getattr(part, "vocab_size", None), int):
            part.vocab_size = min(part.vocab_size, _VOCABULARY)
    return small


def _set_token(config: PretrainedConfig, name: str) -> None:
    """A special token that the small vocabulary has; a padding token would take its row out of the training."""
    try:
        setattr(config, name, None if name.startswith("pad") else 0)
    except Exception:  # some classes insist on a number
        setattr(config, name, 0)


def _kept_layers(config: PretrainedConfig) -> tuple[int, ...]:
    """Which blocks stay: one of each kind that the per-layer lists tell apart, and the first ones."""
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        return ()
    lists = [value for value in vars(config).values() if isinstance(value, list | tuple) and len(value) == layers]
    kinds: dict[str, int] = {}
    for layer in range(layers):
        kinds.setdefault(str([own[layer] for own in lists]), layer)
    kept = set(list(kinds.values())[:_MOST_LAYERS])
    for layer in range(layers):
        if len(kept) >= min(_LEAST_LAYERS, layers):
            break
        kept.add(layer)
    return tuple(sorted(kept))


def _fewer_layers(config: PretrainedConfig, kept: Sequence[int]) -> None:
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        return
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == layers:
            setattr(config, name, type(value)(value[layer] for layer in kept))
        elif isinstance(value, list) and _LAYER_INDICES.search(name) and all(isinstance(own, int) for own in value):
            setattr(config, name, [kept.index(own) for own in value if own in kept])
        elif name == "per_layer_config" and isinstance(value, dict):
            setattr(config, name, {_digits(kept.index(int(at))): own for at, own in value.items() if int(at) in kept})
        elif name == "attention_types" and isinstance(value, list):
            setattr(config, name, [[kinds, -(-len(kept) // len(kinds))] for kinds, _ in value[:1]])
        elif isinstance(value, int) and _LAYER_COUNTS.search(name) and value == layers:
            setattr(config, name, len(kept))
        elif isinstance(value, int) and name.endswith("layer_end_index"):
            setattr(config, name, len(kept) - 1)


def _digits(layer: int) -> str:
    return f"{layer:02d}"


def _narrow(config: PretrainedConfig) -> None:
    hidden = getattr(config, "hidden_size", None)
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(hidden, int) or hidden <= 0:
        hidden = _HIDDEN
    if not isinstance(heads, int) or heads <= 0:
        heads = _HEADS
    head, rope = getattr(config, "head_dim", None), getattr(config, "qk_rope_head_dim", None)
    _narrow_values(vars(config), config, hidden, heads)
    share = 0  # of a head in its rotary part
    if isinstance(head, int) and isinstance(rope, int) and rope > 0 and head % rope == 0:
        named = "partial_rotary_factor" in str(getattr(config, "rope_parameters", ""))
        share = head // rope if named or head == rope else 0
    _agree(config, share)


def _narrow_values(values: dict[str, Any], holder: Any, hidden: int, heads: int) -> None:
    """Cut every number of `values`, which `holder` has: attributes of a configuration, or a dict's."""
    for name, value in list(values.items()):
        if isinstance(value, dict) and name in ("per_layer_config", "attn_config", "ffn_config"):
            for own in value.values():
                if isinstance(own, dict):
                    _narrow_values(own, own, hidden, heads)
            _narrow_values(value, value, hidden, heads)
        elif isinstance(value, PretrainedConfig) and name.endswith(("attn_config", "ffn_config")):
            _narrow_values(vars(value), value, hidden, heads)
        elif isinstance(value, list) and value and all(type(own) is int for own in value):
            cut = [_cut(name.removesuffix("_per_layer"), own, hidden, heads) for own in value]
            if not _LAYER_INDICES.search(name):
                _set(holder, name, cut)
        elif type(value) is int and value > 0:
            _set(holder, name, _cut(name, value, hidden, heads))


def _set(holder: Any, name: str, value: Any) -> None:
    if isinstance(holder, dict):
        holder[name] = value
    else:
        setattr(holder, name, value)


def _cut(name: str, value: int, hidden: int, heads: int) -> int:
    if _WIDTHS.search(name):
        return min(value, max(8, round(value * _HIDDEN / hidden / 8) * 8)) if hidden > _HIDDEN else value
    for pattern, size in _SIZES:
        if re.search(pattern, name):
            return min(value, size)
    if _HEAD_COUNTS.search(name):
        return min(value, max(1 if value == 1 else min(2, value), value * _HEADS // max(heads, _HEADS)))
    return value


def _agree(config: PretrainedConfig, heads_per_rope: int) -> None:
    """Set right what has to follow from other sizes."""
    width: int = getattr(config, "hidden_size", None) or _HIDDEN
    for count, size, factor in (
        ("mamba_n_heads", "mamba_d_head", "mamba_expand"),
        ("n_mamba_heads", "mamba_headdim", "mamba_expand"),
        ("num_heads", "head_dim", "expand"),
    ):
        if all(isinstance(getattr(config, name, None), int) for name in (count, size, factor)):
            inner = getattr(config, "mamba_d_ssm", None) or width * getattr(config, factor)
            setattr(config, size, 16)
            setattr(config, count, max(1, inner // 16))
    heads, keys = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    if isinstance(heads, int) and isinstance(keys, int) and keys and heads % keys:
        config.num_key_value_heads = 1
    experts, groups = getattr(config, "n_routed_experts", None), getattr(config, "n_group", None)
    if isinstance(experts, int) and isinstance(groups, int) and groups and experts % groups:
        config.n_group = config.topk_group = 1
    attention = getattr(config, "attention_hidden_size", None)
    if (
        isinstance(attention, int)
        and isinstance(heads, int)
        and isinstance(getattr(config, "attention_head_dim", None), int)
    ):
        config.attention_head_dim = attention // heads
    both = getattr(config, "qk_nope_head_dim", None), getattr(config, "qk_rope_head_dim", None)
    if all(isinstance(own, int) for own in both):
        if hasattr(config, "qk_head_dim"):
            config.qk_head_dim = both[0] + both[1]  # type: ignore[operator]  # both are numbers
        if getattr(config, "head_dim", None) is not None and heads_per_rope:
            config.head_dim = both[1] * heads_per_rope  # type: ignore[operator]  # a number
    _fit_rope_factors(config, width, heads)


def _fit_rope_factors(config: PretrainedConfig, width: int, heads: int | None) -> None:
    """LongRoPE has a factor for each frequency, of which a narrower head has fewer."""
    rope = getattr(config, "rope_parameters", None)
    head = getattr(config, "head_dim", None) or (width // heads if isinstance(heads, int) else None)
    if not isinstance(rope, dict) or not isinstance(head, int):
        return
    count = int(head * (rope.get("partial_rotary_factor") or 1.0)) // 2
    cut = {name: own[:count] for name, own in rope.items() if name.endswith("_factor") and isinstance(own, list)}
    if cut:
        config.rope_parameters = {**rope, **cut}
