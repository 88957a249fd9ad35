"""A model that is shared out equals the whole one, and one whose plan leaves something out is found."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from evenflow.errors import InputError, NotEqualError
from evenflow.execute import check_shares, refuse_dropout
from evenflow.execute.check_tensor_parallel import SHARES_TOLERANCE

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


def test_dropout_is_refused_where_tensors_are_shared_out() -> None:
    config = AutoConfig.for_model("llama", attention_dropout=0.1)
    refuse_dropout(config, 1)
    with pytest.raises(InputError, match=r"llama drops out \(attention_dropout = 0.1\), .* over --tp 2"):
        refuse_dropout(config, 2)
