"""Why: a preset's figures come from dimensions alone, so they must be those of the model as it is traced."""

from __future__ import annotations

import subprocess
import sys

import pytest

from evenflow.errors import InputError
from evenflow.models import describe_model, find_model
from evenflow.spec.architecture import Architecture
from evenflow.spec.described import preset_facts
from evenflow.spec.presets import PRESETS, find_preset

# Billions of parameters as the models' papers and cards print them.
PRINTED = {
    "gpt3-175b": 175, "gpt-1t": 1008, "bloom-176b": 176.2, "llama-2-7b": 6.74, "llama-2-13b": 13.0,
    "llama-2-70b": 69.0, "llama-3.1-8b": 8.03, "llama-3.1-70b": 70.6, "llama-3.1-405b": 405.8, "mixtral-8x7b": 46.7,
    "mixtral-8x22b": 140.6, "qwen3-32b": 32.8, "qwen3-235b-a22b": 235, "qwen3-30b-a3b": 30.5, "gpt-oss-120b": 116.8,
    "deepseek-v3": 671, "nemotron-4-340b": 341,
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_parameters_that_are_printed(name):
    assert PRESETS[name].parameters / 1e9 == pytest.approx(PRINTED[name], rel=0.01)


def test_a_llama_of_dimensions_equals_the_traced_one(make_model):
    traced = describe_model(find_model(str(make_model())), 2, 32)
    config = find_model(str(make_model())).config
    made = Architecture(
        "tiny", "test", config.num_hidden_layers, config.hidden_size, config.intermediate_size,
        config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.vocab_size,
        tied=config.tie_word_embeddings,
    )  # fmt: skip
    facts = preset_facts(made, 2, 32)
    assert facts["parameters"] == traced.parameters
    assert [layer["forward_flops"] for layer in facts["layers"]] == [layer.forward_flops for layer in traced.layers]


def test_an_unknown_preset_names_the_nearest():
    assert find_preset("Llama 3.1 8B").name == "llama-3.1-8b"
    with pytest.raises(InputError, match=r"llama-3\.1-8b"):
        find_preset("llama-3.1-9b")


def test_describe_of_a_preset_imports_no_torch():
    code = (
        "import sys; from evenflow.cli import main; main(['describe', 'gpt3-175b']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "parameters" in done.stdout) == (0, True)
