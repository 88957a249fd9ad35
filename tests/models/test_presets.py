"""Why: a preset is rehearsed as a model of some type, so that type's layers must be as large as the preset says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from evenflow.errors import InputError
from evenflow.models.preset import preset_config
from evenflow.spec.operators import Shards
from evenflow.spec.presets import PRESETS

# Biases and sinks of gpt-oss, and the norms' biases of nemotron, which presets do not count; others are equal.
TOLERANCE = {"gpt-oss-120b": 4e-4, "nemotron-4-340b": 2e-5}
_WHOLE = Shards()


@pytest.mark.parametrize("name", PRESETS)
def test_each_layer_has_the_parameters_of_the_preset(name: str) -> None:
    """A block of each kind; of GPT-3 learned positions are left out."""
    preset, tolerance = replace(PRESETS[name], layers=5), TOLERANCE.get(name, 0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(preset_config(preset))
    (blocks,) = [own for own in model.modules() if isinstance(own, torch.nn.ModuleList) and len(own) == preset.layers]
    for number, block in enumerate(blocks):
        held = sum(own.numel() for own in block.parameters())
        assert held == pytest.approx(preset.block_parameters(number), rel=tolerance, abs=0)
    assert model.get_input_embeddings().weight.shape == (preset.vocab, preset.hidden)
    rest = sum(own.numel() for own in model.parameters()) - sum(own.numel() for own in blocks.parameters())
    assert rest == pytest.approx(preset.vocab * preset.hidden + preset.head_parameters, rel=tolerance, abs=0)


def test_every_second_block_has_the_window() -> None:
    preset = PRESETS["gpt-oss-120b"]
    config = preset_config(preset)
    assert config.layer_types[:2] == ["sliding_attention", "full_attention"]
    assert [preset.block(number, 1, 256, _WHOLE)[0].window for number in range(2)] == [128, None]
    assert config.sliding_window == 128


def test_layers_that_no_type_has_are_refused() -> None:
    with pytest.raises(InputError, match="has latent attention or a window in a model without experts"):
        preset_config(replace(PRESETS["deepseek-v3"], experts=None))
