"""The parity check finds models whose code does not split, and passes those whose does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn
from transformers import AutoConfig
from transformers import LlamaForCausalLM as AddsEmbedding

from evenflow.errors import InputError, NotEqualError
from evenflow.execute import check_split
from evenflow.execute.runner import StageRunner
from evenflow.execute.shrink import shrink
from evenflow.models import build_stage, dropouts

# What they do that a naive split gets wrong: embeddings scaled inside forward, logits too, tied head; blocks
# that return tuples, ALiBi; learned positions; fused experts; an embedding written in place; a state-space model.
TELLING = ["granite", "bloom", "gpt2", "mixtral", "ctrl", "mamba2"]
IN_CI = {"granite", "bloom", "gpt2", "mixtral", "mamba2"}


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in IN_CI else pytest.mark.full) for name in TELLING]
)
def test_families_that_split(family: str) -> None:
    config = AutoConfig.for_model(family)
    assert family not in ("gpt2", "ctrl") or any(dropouts(config).values()), "dropout is part of what is checked"
    if family == "granite":
        config.embedding_multiplier, config.logits_scaling, config.residual_multiplier = 3.0, 2.0, 0.5
    result = check_split(config)
    assert result.worst_error <= 1e-6
    assert len(result.cuts) >= 4


def test_later_stages_hold_nothing_of_the_embedding() -> None:
    config = shrink(AutoConfig.for_model("gpt2"))
    stage = build_stage(config, [2])
    assert all(name.startswith("transformer.h.1.") for name in stage.named_model_parameters())
    held = sum(tensor.untyped_storage().nbytes() for tensor in stage.state_dict().values())
    assert held <= 1.1 * sum(own.nbytes for own in stage.blocks[0].parameters())


@pytest.mark.parametrize(
    ("family", "construct"),
    [
        ("gemma3n_text", "per_layer_input"),
        ("zamba2", "original_hidden_states"),
        ("hrm_text", "once each and in order"),
        ("hy_v4", "prev_topk_indices"),
    ],
)
def test_what_cannot_be_split_is_refused_by_its_construct(family: str, construct: str) -> None:
    config = AutoConfig.for_model(family)
    for name in dropouts(config):
        setattr(config, name, 0.0)
    with pytest.raises(InputError, match=construct) as error:
        check_split(config)
    assert not isinstance(error.value, NotEqualError)
    assert "\n" not in str(error.value)


def test_a_load_balancing_loss_is_refused_and_what_would_work_does() -> None:
    config = AutoConfig.for_model("mixtral", output_router_logits=True)
    with pytest.raises(InputError, match="output_router_logits = false in its config would do"):
        check_split(config)
    config.output_router_logits = False
    assert check_split(config).worst_error <= 1e-6


def test_a_difference_that_no_rule_foresees_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that adds its embedding to what leaves its blocks, with the rule that names it out of order."""
    plain = AddsEmbedding.forward

    def forward(self: nn.Module, input_ids: Tensor, **rest: Any) -> Any:
        states: list[Tensor] = []
        handles = [
            self.model.embed_tokens.register_forward_hook(lambda *call: states.append(call[-1])),
            self.model.norm.register_forward_pre_hook(lambda module, given: (given[0] + states[0],)),
        ]
        try:
            return plain(self, input_ids, **rest)
        finally:
            for handle in handles:
                handle.remove()

    monkeypatch.setattr(AddsEmbedding, "forward", forward)
    config = AutoConfig.for_model("llama", hidden_size=32, intermediate_size=48, vocab_size=64, rms_norm_eps=1.5e-6)
    with pytest.raises(InputError, match=r"hands what model\.embed_tokens\.weight of layer 0 makes to layer 5"):
        check_split(config)
    monkeypatch.setattr("evenflow.models.anatomy.find_obstacle", lambda *_: None)
    config.rms_norm_eps = 2.5e-6  # another model, which is dissected anew
    with pytest.raises(NotEqualError, match="differs from the whole"):
        check_split(config)


def _twice_the_share(plain: Callable[..., None]) -> Callable[..., None]:
    return lambda runner, predicted: plain(runner, predicted // 2)


def _the_last_microbatch_alone(plain: Callable[..., Any]) -> Callable[..., Any]:
    def backward(runner: StageRunner, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        for parameter in runner.stage.parameters():
            parameter.grad = None
        return plain(runner, microbatch, gradient)

    return backward


@pytest.mark.parametrize(
    ("method", "broken"), [("begin_step", _twice_the_share), ("backward", _the_last_microbatch_alone)]
)
def test_an_error_that_whole_and_stages_have_alike_is_found(
    monkeypatch: pytest.MonkeyPatch, method: str, broken: Callable[..., Any]
) -> None:
    """A loss of twice its share, and gradients that are not added up: stages then equal the whole all the same."""
    monkeypatch.setattr(StageRunner, method, broken(getattr(StageRunner, method)))
    with pytest.raises(NotEqualError, match=r"unsplit, \S+ differs from plain transformers' by \d\.\de[-+]\d\d "):
        check_split(AutoConfig.for_model("gpt2"))  # which drops out, so that is what is compared without
    monkeypatch.setattr("evenflow.execute.check._against_plain", lambda *_: (0.0, "loss"))
    assert check_split(AutoConfig.for_model("llama")).worst_error <= 1e-6


def test_shrinking_keeps_quirks() -> None:
    config = AutoConfig.for_model("granite", embedding_multiplier=3.0, attention_dropout=0.1)
    small = shrink(config)
    assert small.embedding_multiplier == 3.0
    assert small.attention_dropout == 0.1
    assert small.num_hidden_layers == 4
    assert config.num_hidden_layers > 4


def test_shrinking_keeps_a_block_of_each_kind() -> None:
    config = AutoConfig.for_model("gemma3_text")
    assert set(shrink(config).layer_types) == set(config.layer_types)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_compared_by_the_sum_of_both_halves(tied: bool) -> None:
    result = check_split(AutoConfig.for_model("llama", tie_word_embeddings=tied))
    assert result.worst_error <= 1e-6


def test_one_block_has_fewer_cuts() -> None:
    result = check_split(AutoConfig.for_model("llama", num_hidden_layers=1, tie_word_embeddings=False))
    assert all(list(cut) == sorted(set(cut)) for cut in result.cuts)


def test_a_small_copy_has_rotary_tables_as_wide_as_what_they_turn() -> None:
    config = AutoConfig.for_model("dots3_note_text")
    small = shrink(config)
    assert small.qk_rope_head_dim < config.qk_rope_head_dim
    assert small.head_dim / small.qk_rope_head_dim == config.head_dim / config.qk_rope_head_dim


def test_a_factor_for_each_rotary_frequency_fits_the_narrower_heads() -> None:
    factors = [1.0 + 0.05 * number for number in range(48)]
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": factors, "long_factor": factors}
    config = AutoConfig.for_model(
        "phi3", rope_parameters={**rope, "partial_rotary_factor": 1.0}, resid_pdrop=0.0, embd_pdrop=0.0
    )
    assert check_split(config).worst_error <= 1e-6
