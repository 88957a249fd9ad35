"""What a process holds of a model that is shared out over tp, which weights it starts from, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from evenflow.errors import InputError
from evenflow.models import (
    Cut,
    Stage,
    build_skeleton,
    build_stage,
    check_tensor_parallel,
    describe_model,
    draw_weights,
    find_model,
    read_weights,
    share_out,
    tp_plan_of,
)
from evenflow.runtime import ImaginedTensorGroup
from evenflow.spec import Combined
from tests.parity.test_tensor_parallel import FAMILIES


def config_of(family: str, **changes: Any) -> PretrainedConfig:
    facts = {**FAMILIES[family], **changes}
    return AutoConfig.for_model(facts.pop("model_type"), **facts)


def shared(config: PretrainedConfig, layers: range, size: int, index: int) -> Stage:
    stage = build_stage(config, layers)
    share_out(stage, tp_plan_of(build_skeleton(config)), ImaginedTensorGroup(size, index))
    return stage


@pytest.mark.parametrize("packed", [1, 2])
@pytest.mark.parametrize("size", [2, 3])
def test_parts_make_the_whole(packed: int, size: int) -> None:
    """Also of a dim that does not divide, and of matrices that lie side by side."""
    whole = torch.arange(4 * 14 * 3).view(4, 14, 3)
    cuts = [Cut((4, 14, 3), 1, packed, size, index) for index in range(size)]
    parts = [cut.take(whole) for cut in cuts]
    assert [tuple(part.shape) for part in parts] == [cut.local_shape for cut in cuts]
    assert torch.equal(cuts[0].join(parts), whole)
    if packed == 2:
        assert torch.equal(parts[0][:, : cuts[0].share], whole[:, : cuts[0].share])
        assert torch.equal(parts[0][:, cuts[0].share :], whole[:, 7 : 7 + cuts[0].share])


@pytest.mark.parametrize("family", ["qwen2", "mixtral", "gpt_neox"])
def test_every_degree_starts_from_the_same_weights(family: str) -> None:
    config = config_of(family)
    layers = range(config.num_hidden_layers + 2)
    whole = build_stage(config, layers)
    draw_weights(whole, 7)
    for size in (2, 4):
        stages = [shared(config, layers, size, index) for index in range(size)]
        for stage in stages:
            draw_weights(stage, 7)
        sharing = stages[0].sharing
        assert sharing is not None
        held = sum(own.numel() for own in stages[0].named_model_parameters().values())
        assert held < 1.1 * sum(own.numel() for own in whole.named_model_parameters().values()) / size
        for name, expected in whole.named_model_parameters().items():
            parts = [stage.named_model_parameters()[name] for stage in stages]
            found = [sharing.cuts[name].join(parts)] if name in sharing.cuts else parts
            assert all(torch.equal(own, expected) for own in found), name


def test_only_the_parts_that_are_held_are_read_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("mixtral")
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    whole = build_stage(config, range(6))
    draw_weights(whole, 0)
    read_weights(whole, files)
    taken: list[int] = []
    read = Cut.read

    def noted(self: Cut, source: Any) -> torch.Tensor:
        part = read(self, source)
        taken.append(part.numel() * self.size)
        return part

    monkeypatch.setattr(Cut, "read", noted)
    stages = [shared(config, range(6), 2, index) for index in range(2)]
    for stage in stages:
        draw_weights(stage, 1)
        read_weights(stage, files)
    assert len(taken) == 2 * (2 + 4 * 4)  # embedding and head, and of each block what attention projects
    sharing = stages[0].sharing
    assert sharing is not None
    for name, expected in whole.named_model_parameters().items():
        parts = [stage.named_model_parameters()[name] for stage in stages]
        assert torch.equal(sharing.cuts[name].join(parts) if name in sharing.cuts else parts[1], expected), name


@pytest.mark.parametrize("rows", [120, 64])  # 64 is what a process has of 128
def test_a_tensor_of_another_shape_is_refused_whether_it_is_cut_or_not(tmp_path: Path, rows: int) -> None:
    config = config_of("llama")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name][:rows].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    with safe_open(file, framework="pt") as reader:
        assert reader.get_slice(name).get_shape() == [rows, 64]
    stage = shared(config, range(2, 3), 2, 0)
    draw_weights(stage, 0)
    with pytest.raises(InputError, match=rf"up_proj.weight has shape \[{rows}, 64\], the config says \[128, 64\]"):
        read_weights(stage, [file])


def test_a_process_computes_and_holds_its_share(tmp_path: Path) -> None:
    """Of a block two sums of hidden states on the way there and two on the way back (Megatron-LM, section 3)."""
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["llama"]))
    source = find_model(str(tmp_path))
    whole, half = (describe_model(source, 2, 32, tp) for tp in (1, 2))
    hidden = Combined("add", 4 * 2 * 32 * 64)
    assert half.layers[1].forward_combined == half.layers[1].backward_combined == (hidden, hidden)
    assert half.layers[0].forward_combined == (hidden,)
    assert half.layers[-1].backward_combined == (hidden,)
    assert whole.layers[1].forward_combined == ()
    for own, of in zip(half.layers, whole.layers, strict=True):
        assert own.forward_flops * 2 == of.forward_flops
        assert own.backward_flops * 2 == of.backward_flops
        assert own.parameters == of.parameters
        assert own.parameter_bytes < 0.51 * of.parameter_bytes
        assert own.output_bytes == of.output_bytes
    assert half.layers[1].saved_bytes < 0.7 * whole.layers[1].saved_bytes
    assert (half.flops, half.parameters) == (whole.flops, whole.parameters)
    assert half.fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    ("family", "changes", "tp", "says"),
    [
        ("llama", {}, 3, "--tp 3 does not divide the 4 attention heads of llama; --tp 1 or 2 would do"),
        (
            "llama",
            {"num_key_value_heads": 2},
            4,
            "--tp 4 does not divide the 2 key and value heads of llama; --tp 1 or 2 would do",
        ),
        (
            "llama",
            {"intermediate_size": 130},
            4,
            r"--tp 4 does not divide the 130 rows or columns of model.layers.0.mlp.gate_proj.weight \(130 x 64\) of "
            "llama; --tp 1 or 2 would do",
        ),
        ("mixtral", {"intermediate_size": 81}, 2, r"the 81 rows or columns of .*experts.gate_up_proj \(4 x 162 x 48\)"),
    ],
)
def test_what_tp_does_not_divide_is_refused_with_numbers(
    family: str, changes: dict[str, int], tp: int, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        check_tensor_parallel(config_of(family, **changes), tp)


def test_a_model_without_a_plan_is_refused() -> None:
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=64)
    check_tensor_parallel(config, 1)
    with pytest.raises(InputError, match="gpt2 has no base_model_tp_plan"):
        check_tensor_parallel(config, 2)


def test_a_style_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("llama")
    plan = {**type(config).base_model_tp_plan, "layers.*.mlp.up_proj": "sequence_parallel"}
    monkeypatch.setattr(type(config), "base_model_tp_plan", plan)
    with pytest.raises(InputError, match="the style 'sequence_parallel', which is not known here; known are"):
        check_tensor_parallel(config, 2)


def test_one_weight_that_is_cut_in_two_ways_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("qwen2")
    plan = {**type(config).base_model_tp_plan, "embed_tokens": "embedding_colwise"}
    monkeypatch.setattr(type(config), "base_model_tp_plan", plan)
    with pytest.raises(
        InputError, match=r"cuts one weight in several ways, as model.embed_tokens.weight and as lm_head"
    ):
        check_tensor_parallel(config, 2)


def test_describe_prints_a_process_of_tp(make_model: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="does not divide the 2 key and value heads"):
        describe_model(find_model(str(make_model())), 1, 16, 4)
