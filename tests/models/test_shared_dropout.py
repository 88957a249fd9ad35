"""The parts of masks that processes of tp take are those of the mask that one process draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, PretrainedConfig

from evenflow.errors import InputError
from evenflow.models import Stage, build_skeleton, build_stage, share_out, tp_plan_of
from evenflow.models.shared_dropout import _attend, _mask
from evenflow.runtime import ImaginedTensorGroup

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(**changes: Any) -> PretrainedConfig:
    return AutoConfig.for_model("llama", **{**SMALL, "attention_dropout": 0.3, **changes})


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 4, 33, 33)])
def test_a_mask_is_torchs_own(shape: tuple[int, ...]) -> None:
    ones = torch.ones(shape)
    torch.manual_seed(5)
    expected = functional.dropout(ones, 0.3)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(_mask(shape, 0.3, ones), expected)
    assert torch.equal(torch.get_rng_state(), after), "what is drawn next is the same too"


@pytest.mark.parametrize("given", ["causal", "boolean", "added", "scaled", "grouped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_torchs_own(given: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    heads = 2 if given == "grouped" else 4
    query, key, value = (torch.randn(2, own, 9, 16, requires_grad=True) for own in (4, heads, heads))
    seen = (torch.rand(2, 1, 9, 9) > 0.4) | torch.eye(9, dtype=torch.bool)
    settings: dict[str, Any] = {
        "causal": {"is_causal": True},
        "boolean": {"attn_mask": seen},
        "added": {"attn_mask": torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -1e9)},
        "scaled": {"scale": 0.4},
        "grouped": {"enable_gqa": True, "is_causal": True},
    }[given]
    inputs = [own.to(dtype) for own in (query, key, value)]
    torch.manual_seed(5)
    expected = functional.scaled_dot_product_attention(*inputs, dropout_p=0.3, **settings)
    torch.manual_seed(5)
    found = _attend(lambda like: _mask((2, 4, 9, 9), 0.3, like), *inputs, dropout_p=0.3, **settings)
    gradients = [torch.autograd.grad(own.float().square().sum(), (query, key, value)) for own in (expected, found)]
    close = 1e-6 if dtype == torch.float32 else 1e-2
    for own, other in [(found, expected), *zip(*gradients, strict=True)]:
        assert own.dtype == other.dtype
        assert float((own - other).detach().norm() / other.detach().norm()) <= close


def share(config: PretrainedConfig, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Share out a model whose blocks' activations are something else."""
    original = Stage.__init__

    def changed(self: Stage, model: Any, *rest: Any) -> None:
        for own in model.modules():
            if type(own).__name__ == "LlamaMLP":
                own.act_fn = change()
        original(self, model, *rest)

    monkeypatch.setattr(Stage, "__init__", changed)
    stage = build_stage(config, range(4))
    share_out(stage, tp_plan_of(build_skeleton(config)), ImaginedTensorGroup(2))


def test_a_draw_whose_part_cannot_be_told_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Third(nn.Module):
        def forward(self, gate: Tensor) -> Tensor:
            return gate * functional.dropout(gate[..., : gate.shape[-1] // 5], 0.5).sum()

    with pytest.raises(InputError, match=r"mlp.act_fn dropout of 2 x 16 x 25 becomes .* 2 x 16 x 12") as error:
        share(llama(), monkeypatch, Third)
    assert "attention_dropout = 0.0 in its config, or --tp 1, would do" in str(error.value)
    assert "\n" not in str(error.value)


def test_draws_that_parts_change_the_number_of_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(nn.Module):
        def forward(self, gate: Tensor) -> Tensor:
            for _ in range(gate.shape[-1] // 64):
                gate = functional.dropout(gate, 0.5)
            return gate

    with pytest.raises(InputError, match=r"act_fn draws 2 times as a whole and 1 times on parts"):
        share(llama(), monkeypatch, Twice)


def test_a_draw_that_a_later_forward_changes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = build_stage(llama(), range(4))
    share_out(stage, tp_plan_of(build_skeleton(llama())), ImaginedTensorGroup(2))
    assert stage.sharing is not None
    ids = torch.ones(1, 8, dtype=torch.long)
    with pytest.raises(InputError, match=r"self_attn cannot be shared out over --tp 2: attention of 1 x 4 x 8 x 8"):
        stage.train()(ids, ids, draw=7)  # its parameters are whole yet
    stage.sharing.cut()
    stage(ids, ids, draw=7)


def test_what_does_not_drop_out_over_parts_runs_as_it_did() -> None:
    for config in (
        llama(attention_dropout=0.0),
        AutoConfig.for_model("phi3", **SMALL, resid_pdrop=0.1, pad_token_id=0),
    ):
        stage = build_stage(config, range(4))
        share_out(stage, tp_plan_of(build_skeleton(config)), ImaginedTensorGroup(2))
        assert not any("_drawing" in str(vars(own).get("forward")) for own in stage.model.modules())
