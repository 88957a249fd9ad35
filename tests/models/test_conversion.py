"""Weights of families whose checkpoints name or store tensors otherwise than their modules do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from evenflow.errors import InputError
from evenflow.execute.shrink import shrink
from evenflow.models import build_stage, count_layers, draw_weights, read_weights, write_index, write_weights


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe", "gpt2"])
def test_what_transformers_saves_is_read_stage_by_stage_and_written_back_bitwise(family: str, tmp_path: Path) -> None:
    config = shrink(AutoConfig.for_model(family))
    theirs = AutoModelForCausalLM.from_config(config)
    saved, written = tmp_path / "saved", tmp_path / "written"
    theirs.save_pretrained(saved)
    written.mkdir()
    layers, _ = count_layers(config)
    expected = dict(theirs.named_parameters())
    shards = []
    for rank, own in enumerate((range(2), range(2, layers - 1), [layers - 1])):
        stage = build_stage(config, own)
        draw_weights(stage, seed=3)
        read_weights(stage, sorted(saved.glob("*.safetensors")))
        for name, parameter in stage.named_model_parameters().items():
            assert torch.equal(parameter, expected[name]), name
        shards.append(write_weights([stage], written, rank, 3))
    write_index(written, shards)
    ours = {name: own for file in written.glob("*.safetensors") for name, own in load_file(file).items()}
    before = {name: own for file in saved.glob("*.safetensors") for name, own in load_file(file).items()}
    assert ours.keys() == before.keys()
    assert all(torch.equal(ours[name], before[name]) for name in ours)


def test_a_missing_expert_and_an_extra_tensor_are_named(tmp_path: Path) -> None:
    config = shrink(AutoConfig.for_model("mixtral"))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    good = load_file(file)
    stage = build_stage(config, [1])
    expert = next(name for name in good if "layers.0" in name and "experts.1.w2" in name)
    save_file({name: own for name, own in good.items() if name != expert}, file)
    with pytest.raises(InputError, match=r"layers\.0.*experts\.down_proj.*has shape \[7, "):
        read_weights(stage, [file])
    save_file({**good, "model.layers.99.self_attn.q_proj.weight": torch.zeros(3)}, file)
    with pytest.raises(InputError, match=r"has a tensor model\.layers\.99\.self_attn\.q_proj\.weight, for which"):
        read_weights(stage, [file])
