from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from evenflow.errors import InputError
from evenflow.train import tokenizer as under_test
from evenflow.train.tokenizer import (
    END_OF_TEXT,
    check_vocabulary,
    end_of_text_id,
    find_tokenizer,
    save_tokenizer,
    train_bpe,
)

STDLIB = Path(sysconfig.get_paths()["stdlib"])
TEXTS = [(STDLIB / name).read_text() for name in ("textwrap.py", "heapq.py", "bisect.py")]
SAMPLE = "def f(x):\n    return {'\u00e9': 12345}  # \u6f22\u5b57 \t\U0001f642\r\n\n  it's"


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_bpe(TEXTS, 600)


def test_bpe_has_the_size_asked_for_and_encodes_anything(trained: Tokenizer) -> None:
    assert trained.get_vocab_size() == 600
    assert trained.token_to_id(END_OF_TEXT) == 0
    for text in (SAMPLE, *TEXTS):
        assert trained.decode(trained.encode(text).ids) == text
    assert len(trained.encode(TEXTS[0]).ids) < len(TEXTS[0]) / 2  # it has learned something


def test_bpe_is_the_same_each_time(trained: Tokenizer) -> None:
    assert train_bpe(iter(TEXTS), 600).to_str() == trained.to_str()


def test_little_text_gives_a_smaller_vocabulary() -> None:
    assert train_bpe(["ab ab ab"], 600).get_vocab_size() < 270
    assert train_bpe([], 600).get_vocab_size() == 257


def test_a_vocabulary_needs_room_for_all_bytes() -> None:
    assert train_bpe(TEXTS, 257).get_vocab_size() == 257
    with pytest.raises(InputError, match=r"vocab_size 256 .* 257 or more"):
        train_bpe(TEXTS, 256)


def test_the_sample_is_bounded_and_even(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_TRAINING_CHARACTERS", 1000)
    monkeypatch.setattr(under_test, "_SAMPLE_CHARACTERS", 10)
    documents = [f"{number:05d}" for number in range(2500)]
    documents[1200:1300] = ["01200" * 100]  # one long document counts by its length
    kept = under_test._sample(iter(documents))
    assert 500 <= sum(map(len, kept)) <= 1000
    before = sum(text[:5] < "01200" for text in kept)
    after = sum(text[:5] >= "01300" for text in kept)
    assert abs(before - after) <= 2
    assert under_test._sample(["a" * 25]) == ["a" * 10, "a" * 10, "a" * 5]


def test_the_end_of_text_of_a_trained_tokenizer_is_its_own(trained: Tokenizer) -> None:
    assert end_of_text_id(trained, None, 2) == 0  # the model's 2 is a letter here


def test_the_end_of_text_of_a_model_is_the_configured_one(trained: Tokenizer, tmp_path: Path) -> None:
    assert end_of_text_id(trained, tmp_path, 5) == 5
    assert end_of_text_id(trained, tmp_path, [7, 8]) == 7
    assert end_of_text_id(trained, tmp_path, None) == 0
    assert end_of_text_id(trained, tmp_path, 128001) == 0
    token = trained.id_to_token(300)
    for value in (token, {"content": token}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": value}))
        assert end_of_text_id(trained, tmp_path, None) == 300
        assert end_of_text_id(trained, tmp_path, 5) == 5


def test_without_an_end_of_text_there_is_none(tmp_path: Path) -> None:
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    assert end_of_text_id(tokenizer, tmp_path, 17) is None
    tokenizer.add_special_tokens(["</s>"])
    assert end_of_text_id(tokenizer, tmp_path, 17) == 2


def test_ids_beyond_the_embedding_are_refused(trained: Tokenizer) -> None:
    check_vocabulary(trained, 600)
    with pytest.raises(InputError, match=r"ids up to 599, .*vocab_size is 599; vocab_size 600 or more"):
        check_vocabulary(trained, 599)
    added = Tokenizer.from_str(trained.to_str())
    added.add_special_tokens(["<pad>"])
    with pytest.raises(InputError, match="ids up to 600"):
        check_vocabulary(added, 600)


def test_a_tokenizer_is_found(trained: Tokenizer, tmp_path: Path) -> None:
    assert find_tokenizer(tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    assert find_tokenizer(tmp_path) is None
    trained.save(str(tmp_path / "tokenizer.json"))
    found = find_tokenizer(tmp_path)
    assert found is not None
    assert found.to_str() == trained.to_str()


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer"):
        find_tokenizer(tmp_path)


def test_other_tokenizer_files_are_converted(trained: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    trained.model.save(str(tmp_path))  # vocab.json and merges.txt
    found = find_tokenizer(tmp_path)
    assert found is not None
    assert found.encode(SAMPLE, add_special_tokens=False).ids == trained.encode(SAMPLE).ids


@pytest.mark.parametrize("name", ["tokenizer_config.json", "vocab.json", "tokenizer.model"])
def test_tokenizer_files_without_a_vocabulary_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / name).write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(InputError) as caught:
        find_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "a tokenizer.json there" in str(caught.value)


@pytest.mark.parametrize("model_type", [None, "llama", "qwen2", "qwen3", "mistral", "gpt2"])
def test_a_saved_tokenizer_is_what_transformers_loads(
    trained: Tokenizer, tmp_path: Path, model_type: str | None
) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(trained, None, tmp_path / "out")
    if model_type is not None:
        (tmp_path / "out/config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(str(tmp_path / "out"), local_files_only=True)
    for text in (SAMPLE, *TEXTS):
        ids = loaded.encode(text)
        assert ids == trained.encode(text).ids
        assert loaded.decode(ids) == text
    assert loaded.eos_token_id == 0


def test_the_models_own_configuration_is_kept(trained: Tokenizer, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    save_tokenizer(trained, None, model)
    (model / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    (model / "special_tokens_map.json").write_text("{}")
    save_tokenizer(trained, model, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((out / "tokenizer_config.json").read_bytes()) == {"model_max_length": 77}
    save_tokenizer(trained, model, model)
    assert json.loads((model / "tokenizer_config.json").read_bytes()) == {"model_max_length": 77}
