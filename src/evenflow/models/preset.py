"""A preset as a Hugging Face configuration, so that parts of a model known by its dimensions alone can be built.

Each becomes the type whose layers are its own; what a preset does not say (rotary bases, how experts are chosen and
their scores scaled) is that type's default, and costs nothing. GPT-3 and BLOOM become GPT-NeoX without parallel
residuals: the same products, and a plan of its own to share them out, which the types of GPT-2 and BLOOM have not.
Positions are rotary there, not learned or ALiBi, and BLOOM's norm after the embedding is left out. DeepSeek's are
without the module that predicts a second token, which a preset does not count and transformers does not have.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from evenflow.errors import InputError
from evenflow.models.source import ModelSource
from evenflow.spec.architecture import Architecture, Experts, Latent
from evenflow.spec.presets import find_preset

_LONGEST = 131072  # tokens of a sequence, where a preset has no learned positions


def preset_source(name: str) -> ModelSource:
    """The preset of a name as a model whose parts can be built.

    Raises:
        InputError: there is none, or no type of transformers has its layers.
    """
    preset = find_preset(name)
    return ModelSource(preset.name, preset_config(preset), None, preset.name, is_preset=True)


def preset_config(preset: Architecture) -> PretrainedConfig:
    """The configuration of a model of such dimensions.

    Raises:
        InputError: no type of transformers has such layers.
    """
    facts = _facts(preset)
    return AutoConfig.for_model(facts.pop("model_type"), **facts)


def _facts(preset: Architecture) -> dict[str, Any]:
    """What the configuration says.

    Raises:
        InputError: no type has such layers.
    """
    common = {
        "vocab_size": preset.vocab,
        "hidden_size": preset.hidden,
        "intermediate_size": preset.ffn,
        "num_hidden_layers": preset.layers,
        "num_attention_heads": preset.heads,
        "tie_word_embeddings": preset.tied,
        "max_position_embeddings": max(preset.positions, _LONGEST),
    }
    if preset.biased:
        return {
            **common, "model_type": "gpt_neox", "use_parallel_residual": False, "hidden_act": "gelu",
            "attention_dropout": 0.0, "hidden_dropout": 0.0,
        }  # fmt: skip
    if preset.latent is not None and preset.experts is not None:
        return {**common, **_deepseek(preset.latent, preset.experts, preset.heads)}
    grouped = {**common, "num_key_value_heads": preset.kv_heads, "head_dim": preset.head_dim}
    if preset.window is not None and preset.experts is not None:
        return {**grouped, **_gpt_oss(preset.window, preset.experts)}
    if preset.latent is not None or preset.window is not None:
        raise InputError(
            f"{preset.name} has latent attention or a window in a model without experts, which no type here has; a "
            "model directory can be built"
        )
    if preset.experts is not None:
        kind = {"num_experts_per_tok": preset.experts.active, "router_aux_loss_coef": 0.0}
        if preset.query_norms:
            kind |= {"num_experts": preset.experts.count, "moe_intermediate_size": preset.experts.ffn}
            return {**grouped, **kind, "model_type": "qwen3_moe"}
        return {**grouped, **kind, "model_type": "mixtral", "num_local_experts": preset.experts.count}
    if not preset.gated:
        return {**grouped, "model_type": "nemotron"}
    return {**grouped, "model_type": "qwen3" if preset.query_norms else "llama"}


def _deepseek(latent: Latent, experts: Experts, heads: int) -> dict[str, Any]:
    return {
        "model_type": "deepseek_v2",
        "num_key_value_heads": heads,
        "q_lora_rank": latent.query_rank,
        "kv_lora_rank": latent.key_rank,
        "qk_nope_head_dim": latent.plain_dim,
        "qk_rope_head_dim": latent.rotary_dim,
        "v_head_dim": latent.value_dim,
        "n_routed_experts": experts.count,
        "num_experts_per_tok": experts.active,
        "moe_intermediate_size": experts.ffn,
        "n_shared_experts": experts.shared_ffn // experts.ffn,
        "first_k_dense_replace": experts.dense_layers,
    }


def _gpt_oss(window: int, experts: Experts) -> dict[str, Any]:
    """Every second block has the window, which is the type's default; its biases are not in the preset's count."""
    return {
        "model_type": "gpt_oss",
        "sliding_window": window,
        "intermediate_size": experts.ffn,
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.active,
        "router_aux_loss_coef": 0.0,
    }
