"""Stages shared out over tp, in any product with pipelines and replicas: against plain transformers and one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from tests.conftest import TINY_LLAMA
from tests.parity.conftest import SplitRun
from tests.parity.test_axes import _error
from tests.parity.test_whole import cut, place_stages, whole_model

MICROBATCHES = 8  # of the whole job
STEPS = 4
TOLERANCE = 1e-5
_SMALL: dict[str, Any] = {
    "vocab_size": 99,  # which neither 2 nor 4 divide
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
# Grouped heads; biases and a tied head; norms of each head; fused heads and a parallel block; fused gates, gathered;
# norms of all heads; experts; low-rank keys whose rotary part goes round the projection.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**TINY_LLAMA, "num_hidden_layers": 4, "num_key_value_heads": 4},
    "qwen2": {**_SMALL, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**_SMALL, "model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "gpt_neox": {**_SMALL, "model_type": "gpt_neox", "hidden_act": "gelu"},
    "glm": {**_SMALL, "model_type": "glm", "head_dim": 16, "pad_token_id": None},
    "olmo2": {**_SMALL, "model_type": "olmo2", "pad_token_id": None},
    "mixtral": {**_SMALL, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": {
        **_SMALL,
        "model_type": "deepseek_v2",
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
    },
}

RECOMPUTE = {"qwen2": "mixed", "mixtral": "selective", "gpt_neox": "full"}  # others nothing

# Family, pp, dp, tp, ZeRO, schedule, placement. Rows of CI; `make parity` has the rest.
CASES = [
    ("llama", 1, 1, 4, 0, "1f1b", "own"),
    ("llama", 2, 2, 2, 1, "1f1b", "own"),
    ("qwen2", 2, 1, 2, 0, "1f1b", "own"),
    ("gpt_neox", 2, 1, 2, 0, "interleaved", "own"),
    ("mixtral", 2, 1, 2, 0, "1f1b", "own"),
]
MORE = [
    ("llama", 1, 1, 2, 0, "1f1b", "own"),
    ("qwen3", 1, 2, 2, 0, "1f1b", "own"),
    ("qwen2", 2, 1, 2, 0, "gpipe", "v"),  # embedding and head on one rank, on two stages
    ("llama", 2, 2, 2, 0, "gpipe", "own"),
    ("llama", 1, 2, 4, 1, "1f1b", "own"),
    ("llama", 2, 1, 4, 0, "interleaved", "own"),
    ("qwen2", 1, 1, 4, 0, "1f1b", "own"),
    ("qwen2", 2, 2, 2, 1, "1f1b", "own"),
    ("qwen2", 4, 1, 2, 0, "gpipe", "own"),
    ("qwen3", 2, 1, 4, 0, "1f1b", "own"),
    ("gpt_neox", 1, 1, 4, 0, "1f1b", "own"),
    ("glm", 2, 1, 2, 0, "1f1b", "own"),
    ("olmo2", 2, 1, 2, 0, "1f1b", "own"),
    ("mixtral", 1, 2, 4, 1, "1f1b", "own"),
    ("deepseek_v2", 2, 1, 2, 0, "1f1b", "own"),
    ("deepseek_v2", 1, 1, 4, 0, "1f1b", "own"),
]


@cache
def _whole(family: str) -> tuple[float, dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    return whole_model(FAMILIES[family], 3, MICROBATCHES, (2, 16))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("family", "pp", "dp", "tp", "zero", "schedule", "placement"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.full) for case in MORE)],
)
def test_a_shared_stage_equals_the_whole_model(
    run_split: Callable[..., SplitRun], family: str, pp: int, dp: int, tp: int, zero: int, schedule: str, placement: str
) -> None:
    """Loss, every gradient and the norm of the first step; then losses, norms and weights after some."""
    stage_rank = place_stages(schedule, placement, pp) if pp > 1 else (0,)
    config = FAMILIES[family]
    layers = config["num_hidden_layers"] + 2

    def run(ranks: tuple[int, ...], **axes: Any) -> SplitRun:
        return run_split(config, cut(layers, len(ranks)), ranks, steps=STEPS, schedule=schedule, **axes)

    shared = run(
        stage_rank,
        microbatches=MICROBATCHES // dp,
        axes={"pp": pp, "dp": dp, "tp": tp},
        zero=zero,
        recompute=RECOMPUTE.get(family, "none"),
    )
    loss, gradients = _whole(family)
    assert shared.losses[0] == pytest.approx(loss, rel=TOLERANCE)
    assert shared.gradients.keys() == gradients.keys()
    for name, expected in gradients.items():
        assert _error(shared.gradients[name].view_as(expected), expected) <= TOLERANCE, name
    norm = float(torch.linalg.vector_norm(torch.stack([own.double().norm() for own in gradients.values()])))
    assert shared.norms[0] == pytest.approx(norm, rel=1e-6)
    alone = run_split(config, cut(layers, 1), steps=STEPS, microbatches=MICROBATCHES)
    assert shared.losses == pytest.approx(alone.losses, rel=TOLERANCE)
    assert shared.norms == pytest.approx(alone.norms, rel=1e-4)
    assert shared.moments.keys() == alone.moments.keys()
    for name, weight in alone.weights.items():
        # A key's bias has hardly a gradient: of what rounding makes of it, AdamW takes little but the sign.
        assert _error(shared.weights[name], weight) <= (1e-2 if name.endswith("bias") else 1e-4), name


# Attention over parts; hidden states that all have, beside it; both, grouped heads and what is dropped of an embedding.
DROPPING: dict[str, dict[str, Any]] = {
    "llama": {**FAMILIES["llama"], "attention_dropout": 0.2},
    "gpt_neox": {**FAMILIES["gpt_neox"], "attention_dropout": 0.1, "hidden_dropout": 0.2},
    "starcoder2": {
        **_SMALL,
        "model_type": "starcoder2",
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "attention_dropout": 0.3,
        "residual_dropout": 0.1,
        "embedding_dropout": 0.2,
    },
}
DROPPED = [
    ("llama", 1, 1, 2, "none"),
    ("gpt_neox", 2, 1, 2, "full"),
    ("starcoder2", 2, 2, 2, "selective"),
    *(
        pytest.param(family, pp, dp, tp, recompute, marks=pytest.mark.full)
        for family, pp, dp, tp, recompute in [
            ("llama", 1, 1, 2, "full"),
            ("llama", 2, 1, 2, "selective"),
            ("llama", 2, 2, 1, "none"),
            ("gpt_neox", 1, 1, 2, "none"),
            ("gpt_neox", 1, 1, 2, "selective"),
            ("gpt_neox", 1, 4, 1, "full"),
            ("gpt_neox", 2, 2, 2, "none"),
            ("starcoder2", 2, 1, 2, "none"),
            ("starcoder2", 1, 2, 2, "mixed"),
        ]
    ),
]


@pytest.mark.parity
@pytest.mark.parametrize(("family", "pp", "dp", "tp", "recompute"), DROPPED)
def test_any_product_drops_out_as_one_process_does(
    run_split: Callable[..., SplitRun], family: str, pp: int, dp: int, tp: int, recompute: str
) -> None:
    config = DROPPING[family]
    layers = config["num_hidden_layers"] + 2
    alone = run_split(config, cut(layers, 1), steps=3)
    without = {key: 0.0 if "dropout" in key else value for key, value in config.items()}
    assert run_split(without, cut(layers, 1)).losses[0] != pytest.approx(alone.losses[0], rel=1e-4), "there is dropout"
    axes = {"pp": pp, "dp": dp, "tp": tp}
    shared = run_split(config, cut(layers, pp), steps=3, microbatches=4 // dp, axes=axes, recompute=recompute)
    assert shared.losses == pytest.approx(alone.losses, rel=TOLERANCE)
    assert shared.norms == pytest.approx(alone.norms, rel=1e-4)
    assert shared.gradients.keys() == alone.gradients.keys()
    for name, expected in alone.gradients.items():
        assert _error(shared.gradients[name].view_as(expected), expected) <= TOLERANCE, name
