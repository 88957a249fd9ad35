"""`--set` does what a config.json with that line would, and a setting that cannot be is one line that names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from benchmarks import families
from benchmarks.settings import configured, parse_setting
from benchmarks.tiny_configs import added, build_config
from evenflow.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["llama", "--set", 'hidden_size="wide"'], "hidden_size"),
        (["llama", "--set", "vocab_size=64", "--set", "rope_parameters=3"], "rope_parameters"),
        (["llama", "--set", "num_key_value_head=2"], "num_key_value_heads"),
        (["mpt", "--set", "attn_config.alib=false"], "alibi"),
        (["llama", "--set", "vocab_size.x=1"], "vocab_size"),
        (["llama", "--set", "vocab_size"], "FIELD=VALUE"),
        (["lama"], "llama"),
        (["clip"], "clip"),
        (["musicgen"], "musicgen"),
    ],
)
def test_what_cannot_be_set_is_one_line_that_names_it(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert families.main([*arguments, "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert named in said.err


def test_what_a_class_works_out_of_a_field_follows() -> None:
    config = configured("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1})
    assert set(config.layer_types[1:]) == {"sliding_attention"}


def test_a_field_of_a_part_leaves_its_others() -> None:
    plain = AutoConfig.for_model("mpt").attn_config
    part = configured("mpt", dict([parse_setting("attn_config.alibi=false")])).attn_config
    assert (part.alibi, plain.alibi) == (False, True)
    assert part.attn_type == plain.attn_type


def test_a_field_that_a_class_takes_and_does_not_keep_may_be_set() -> None:
    config = configured("cohere2", {"sliding_window_pattern": 2, "num_hidden_layers": 4})
    assert config.layer_types == ["sliding_attention", "full_attention"] * 2


def test_a_field_that_only_the_models_code_names_may_be_set() -> None:
    assert configured("llama", {"loss_type": "ForCausalLM"}).loss_type == "ForCausalLM"
    with pytest.raises(InputError, match="LlamaConfig has no field residual_multiplier"):
        configured("llama", {"residual_multiplier": 0.5})


def test_a_file_may_be_set_too(tmp_path: Path) -> None:
    AutoConfig.for_model("qwen2", num_hidden_layers=3).save_pretrained(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    del facts["layer_types"]
    (tmp_path / "config.json").write_text(json.dumps(facts))
    config = configured(str(tmp_path), {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1})
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    with pytest.raises(InputError, match="hidden_size"):
        configured(str(tmp_path), {"hidden_size": "wide"})


def test_what_is_set_to_none_stays_so_and_the_rest_is_filled() -> None:
    config = build_config("deepseek_v3", {"q_lora_rank": None}, needed=True)
    assert config.q_lora_rank is None
    assert build_config("dbrx", {}, needed=True).attn_config.rope_theta == 10000.0


def test_what_is_filled_is_told() -> None:
    assert "clip_qkv" in added(build_config("dbrx", {}, needed=True), build_config("dbrx", {}))
    assert added(build_config("llama", {}), build_config("llama", {})) == ""
