"""The parity check finds models whose code does not split, and passes those whose does."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from evenflow.errors import InputError
from evenflow.execute import check_split
from evenflow.execute.shrink import shrink


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3_text"])
def test_families_that_split(family: str) -> None:
    config = AutoConfig.for_model(family, tie_word_embeddings=False)
    result = check_split(config)
    assert result.worst_error <= 1e-6
    assert len(result.cuts) == 4


def test_work_between_embedding_and_blocks_is_found() -> None:
    # Granite scales its embeddings inside forward: every later stage would scale its input again.
    config = AutoConfig.for_model("granite", embedding_multiplier=3.0, tie_word_embeddings=False)
    with pytest.raises(InputError, match="granite does not split"):
        check_split(config)


def test_shrinking_keeps_quirks() -> None:
    config = AutoConfig.for_model("granite", embedding_multiplier=3.0, attention_dropout=0.1)
    small = shrink(config)
    assert small.embedding_multiplier == 3.0
    assert small.attention_dropout == 0.0
    assert small.num_hidden_layers == 4
    assert config.num_hidden_layers > 4


def test_blocks_that_return_more_than_hidden_states_are_refused_in_one_line() -> None:
    config = AutoConfig.for_model("bloom", tie_word_embeddings=False, hidden_dropout=0.0, attention_dropout=0.0)
    with pytest.raises(InputError, match="bloom does not split") as error:
        check_split(config)
    assert "\n" not in str(error.value)


def test_tied_embeddings_are_the_reason_that_is_given() -> None:
    with pytest.raises(InputError, match="ties its embedding"):
        check_split(AutoConfig.for_model("llama", tie_word_embeddings=True))


def test_one_block_has_fewer_cuts() -> None:
    result = check_split(AutoConfig.for_model("llama", num_hidden_layers=1, tie_word_embeddings=False))
    assert all(list(cut) == sorted(set(cut)) for cut in result.cuts)
