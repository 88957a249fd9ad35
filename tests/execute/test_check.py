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
