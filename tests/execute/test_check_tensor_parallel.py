"""A model that is shared out equals the whole one, and one whose plan leaves something out is found."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from evenflow.errors import InputError, NotEqualError
from evenflow.execute import check_shares
from evenflow.execute.check_tensor_parallel import SHARES_TOLERANCE
from evenflow.models import tensor_parallel

# Gathered projections; low-rank keys; experts in other layouts; attention sinks; an embedding that is scaled
# and logits that are capped; identity experts, with two attentions in a block.
TELLING = ["glm", "olmo2", "minicpm3", "aria_text", "llama4_text", "mimo_v2_flash", "gemma2", "longcat_flash"]


@pytest.mark.parametrize("family", TELLING[:6])
def test_families_that_can_be_shared_out(family: str) -> None:
    result = check_shares(AutoConfig.for_model(family), 2)
    assert result.worst_error <= SHARES_TOLERANCE
    assert result.cut > result.parameters / 3


@pytest.mark.full
@pytest.mark.parametrize("family", TELLING[6:])
def test_more_families_that_can_be_shared_out(family: str) -> None:
    assert check_shares(AutoConfig.for_model(family), 2).worst_error <= SHARES_TOLERANCE


def test_a_plan_that_leaves_something_out_is_found() -> None:
    """Activations with parameters of their own see a part of what their gradients are made from; the plan is silent."""
    with pytest.raises(NotEqualError, match=r"apertus cannot be shared out over tp: .*act_fn.alpha_p differs"):
        check_shares(AutoConfig.for_model("apertus"), 2)


def test_a_plan_that_does_not_fit_the_code_is_found() -> None:
    config = AutoConfig.for_model("llama", num_hidden_layers=2)
    config.base_model_tp_plan = {**config.base_model_tp_plan, "layers.*.self_attn.o_proj": "colwise"}
    with pytest.raises(InputError, match="with a part of its tensors its code fails") as error:
        check_shares(config, 2)
    assert "\n" not in str(error.value)


# Attention alone; over hidden states too; in attention's own words (eager), over grouped heads and after the embedding.
DROPPING: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_dropout": 0.2}),
    ("gpt_neox", {"attention_dropout": 0.1, "hidden_dropout": 0.3}),
    (
        "starcoder2",
        {
            "attention_dropout": 0.3,
            "residual_dropout": 0.2,
            "embedding_dropout": 0.1,
            "num_key_value_heads": 12,
            "attn_implementation": "eager",
        },
    ),
]


@pytest.mark.parametrize(("family", "changes"), DROPPING, ids=[own for own, _ in DROPPING])
def test_models_that_drop_out_can_be_shared_out(
    family: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AutoConfig.for_model(family, **changes)
    assert check_shares(config, 2).worst_error <= SHARES_TOLERANCE
    monkeypatch.setattr(tensor_parallel, "share_draws", lambda *_: None)
    with pytest.raises(NotEqualError, match=f"{family} cannot be shared out over tp"):
        check_shares(config, 2)
