"""The count of families: equal, refused by construct, left out by rule, and nothing hangs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from benchmarks import families
from benchmarks.tiny_configs import default_config, quirks, types, with_quirks
from evenflow.errors import InputError
from evenflow.execute.shrink import shrink
from evenflow.models import ModelSource
from evenflow.spec import Model


def test_it_counts_equal_and_refused_and_says_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    AutoConfig.for_model("qwen2", hidden_size=32, num_attention_heads=2, num_key_value_heads=2).save_pretrained(
        tmp_path
    )
    names = [str(tmp_path / "config.json"), "cohere", "zamba2"]
    assert families.main([*names, "--json", "--processes", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["equal"] == names[:2]
    assert "original_hidden_states" in result["refused"]["zamba2"]
    assert result["wrong"] == []


def test_fields_may_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert families.main(["olmoe", "--set", "output_router_logits=true", "--json"]) == 0
    assert "output_router_logits" in json.loads(capsys.readouterr().out)["refused"]["olmoe"]


def test_a_family_that_hangs_or_dies_does_not_keep_the_others() -> None:
    def judge(name: str, changes: dict[str, Any]) -> families.Verdict:
        if name == "hangs":
            time.sleep(60)
        if name == "dies":
            raise SystemExit(3)
        return families.Verdict("equal", name)

    began = time.monotonic()
    verdicts = families.judge_all(judge, ["hangs", "dies", "a", "b"], {}, processes=2, limit_s=2, quiet=True)
    assert time.monotonic() - began < 30
    assert verdicts["a"] == families.Verdict("equal", "a")
    assert verdicts["b"] == families.Verdict("equal", "b")
    assert verdicts["hangs"].status == "refused"
    assert verdicts["hangs"].reason.startswith("not done after 2 s")
    assert verdicts["dies"] == families.Verdict("refused", "its process died")


def test_real_dimensions_are_traced(capsys: pytest.CaptureFixture[str]) -> None:
    assert families.main(["mixtral", "--trace", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["traced"] == ["mixtral"]


def test_types_are_left_out_by_a_rule() -> None:
    taken, left_out = types()
    assert {"llama", "gpt2", "bloom", "mixtral", "mamba", "gemma3_text"} <= set(taken)
    assert "encoder-decoder" in left_out["bart"]
    assert "masked tokens" in left_out["bert"]
    assert "more than text" in left_out["gemma3"]


def test_quirks_are_what_is_at_rest() -> None:
    found = dict(quirks(default_config("granite")))
    assert found["embedding_multiplier"] != 1.0
    assert dict(quirks(default_config("gemma2")))["tie_word_embeddings"] is False
    assert dict(quirks(default_config("falcon")))["alibi"] is True


def test_a_setting_and_what_its_class_leaves_out_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert families.main(["dbrx", "--set", "attn_config.clip_qkv=0.5", "--processes", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["equal"] == ["dbrx"], result["refused"]
    assert "attn_config.rope_theta" in result["filled"]["dbrx"]


def test_a_setting_that_its_model_refuses_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert families.main(["llama", "--set", 'hidden_act="none-such"', "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["refused"]["llama"].startswith('with hidden_act = "none-such": ')


def test_what_is_traced_with_values_filled_in_is_marked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe(source: ModelSource, *_: int) -> Model:
        if "rope_theta" not in vars(source.config.attn_config):
            raise InputError("no rope_theta")
        return small_model

    small_model = Model("m", "M", 8, 8, False, 1, 1, ())
    monkeypatch.setattr(families, "describe_model", describe)
    assert families.main(["dbrx", "--trace"]) == 0
    assert "1 traced (1 of them with values filled in)" in (said := capsys.readouterr().out)
    assert "(filled in: " in said
    assert "attn_config.rope_theta = 10000.0" in said


def test_a_switch_is_thrown_by_the_class_so_that_what_follows_from_it_does() -> None:
    config = default_config("qwen2")
    assert "sliding_attention" not in config.layer_types
    switched = {field: changed for field, _, changed in with_quirks("qwen2", config)}
    changed = switched["use_sliding_window"]
    assert changed is not None
    assert "sliding_attention" in changed.layer_types
    assert "sliding_attention" in shrink(changed).layer_types
