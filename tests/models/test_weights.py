"""Weights: the same whatever the stage, read only where they belong, written so that transformers opens them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PretrainedConfig

from evenflow.errors import InputError
from evenflow.models import build_stage, draw_weights, find_model, read_weights, write_index, write_weights


@pytest.fixture
def config(make_model: Callable[..., Path]) -> PretrainedConfig:
    return find_model(str(make_model())).config


def test_a_layer_is_drawn_alike_in_every_stage(config: PretrainedConfig) -> None:
    whole = build_stage(config, range(6))
    draw_weights(whole, seed=5)
    expected = whole.named_model_parameters()
    for layers in ([0, 1], [2], [3, 4, 5]):
        stage = build_stage(config, layers)
        draw_weights(stage, seed=5)
        for name, parameter in stage.named_model_parameters().items():
            assert torch.equal(parameter, expected[name]), name
    other = build_stage(config, [2])
    draw_weights(other, seed=6)
    name = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(other.named_model_parameters()[name], expected[name])


def test_layers_differ_from_one_another(config: PretrainedConfig) -> None:
    stage = build_stage(config, [1, 2])
    draw_weights(stage, seed=5)
    parameters = stage.named_model_parameters()
    assert not torch.equal(
        parameters["model.layers.0.mlp.up_proj.weight"], parameters["model.layers.1.mlp.up_proj.weight"]
    )


def test_shards_open_in_transformers_and_read_back(config: PretrainedConfig, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    stages = [build_stage(config, layers) for layers in ([0, 1], [2, 3], [4, 5])]
    shards = []
    for rank, stage in enumerate(stages):
        draw_weights(stage, seed=1)
        shards.append(write_weights([stage], folder, rank, 3))
    write_index(folder, shards)
    config.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    whole = build_stage(config, range(6))
    draw_weights(whole, seed=1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, whole.named_model_parameters()[name]), name
    middle = build_stage(config, [2])
    draw_weights(middle, seed=9)
    read_weights(middle, sorted(folder.glob("*.safetensors")))
    for name, parameter in middle.named_model_parameters().items():
        assert torch.equal(parameter, whole.named_model_parameters()[name]), name


def test_missing_misshapen_and_damaged_tensors_are_named(config: PretrainedConfig, tmp_path: Path) -> None:
    stage = build_stage(config, [1])
    draw_weights(stage, seed=1)
    write_weights([stage], tmp_path, 0, 1)
    file = tmp_path / "model.safetensors"
    good = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({key: value for key, value in good.items() if key != name}, file)
    with pytest.raises(InputError, match=f"no tensor {name}"):
        read_weights(stage, [file])
    save_file({**good, name: good[name][:5]}, file)
    with pytest.raises(InputError, match=rf"{name} has shape \[5, 64\], the config says \[128, 64\]"):
        read_weights(stage, [file])
    file.write_bytes(b"\x10" * 100)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_weights(stage, [file])
