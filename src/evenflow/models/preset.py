"""A preset as a Hugging Face configuration, so that parts of a model known by its dimensions alone can be built.

Each becomes the type whose layers are its own; what a preset does not say (rotary bases, which experts' scores are
scaled) is that type's default, and costs nothing. GPT-3 becomes a GPT-NeoX without parallel residuals: the same
products, and a plan of its own to share them out, which GPT-2's type has not; its positions are rotary, not learned.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from evenflow.errors import InputError
from evenflow.models.source import ModelSource
from evenflow.spec.architecture import Architecture
from evenflow.spec.presets import find_preset

_LONGEST = 131072  # tokens of a sequence, where a preset has no learned positions


def preset_source(name: str) -> ModelSource:
    """The preset of a name as a model whose parts can be built.

    Raises:
        InputError: there is none, or no type of transformers has its layers.
    """
    preset = find_preset(name)
    facts = _facts(preset)
    config = AutoConfig.for_model(facts.pop("model_type"), **facts)
    return ModelSource(preset.name, config, None, preset.name, is_preset=True)


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
    if preset.latent is not None or preset.window is not None or (preset.biased and not preset.positions):
        raise InputError(f"{preset.name} is known by its dimensions alone, and cannot be built; a model directory can")
    if preset.biased:
        return {
            **common, "model_type": "gpt_neox", "use_parallel_residual": False, "hidden_act": "gelu",
            "attention_dropout": 0.0, "hidden_dropout": 0.0,
        }  # fmt: skip
    grouped = {**common, "num_key_value_heads": preset.kv_heads, "head_dim": preset.head_dim}
    if preset.experts is not None:
        kind = {"num_experts_per_tok": preset.experts.active, "router_aux_loss_coef": 0.0}
        if preset.query_norms:
            kind |= {"num_experts": preset.experts.count, "moe_intermediate_size": preset.experts.ffn}
            return {**grouped, **kind, "model_type": "qwen3_moe"}
        return {**grouped, **kind, "model_type": "mixtral", "num_local_experts": preset.experts.count}
    if not preset.gated:
        return {**grouped, "model_type": "nemotron"}
    return {**grouped, "model_type": "qwen3" if preset.query_norms else "llama"}
