"""Which models keep documents apart is found by running them: some take positions and read across all the same."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from evenflow.errors import InputError
from evenflow.execute import check_documents


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_attention_by_positions_keeps_documents_apart(family: str) -> None:
    check_documents(AutoConfig.for_model(family))


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("bloom", {}, "BloomForCausalLM takes no position ids"),
        ("opt", {}, "OPTDecoderLayer of layer 1 reads across"),
        (
            "lfm2",
            {"layer_types": ["full_attention", "conv"] * 2, "num_hidden_layers": 4},
            "Lfm2DecoderLayer of layer 2 reads across",
        ),
    ],
)
def test_what_reads_across_is_named(family: str, changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        check_documents(AutoConfig.for_model(family, **changes))
    assert "--packing padded" in str(error.value)
    assert "\n" not in str(error.value)
