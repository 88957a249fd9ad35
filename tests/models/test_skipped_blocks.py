"""A stage whose blocks its model passes by says so, and does not hand on what it never computed."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from evenflow.errors import InputError
from evenflow.models import build_stage, draw_weights

ALWAYS = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 96}


@pytest.mark.parametrize("layers", [(0, 1, 2), (3, 4), (3, 4, 5)], ids=["first", "middle", "last"])
def test_what_skips_its_blocks_is_refused(layers: tuple[int, ...]) -> None:
    config = AutoConfig.for_model("opt", **ALWAYS, word_embed_proj_dim=32, layerdrop=1.0, tie_word_embeddings=False)
    stage = build_stage(config, layers).train()
    draw_weights(stage, 0)
    ids = torch.zeros(2, 8, dtype=torch.long)
    with pytest.raises(InputError, match=r"opt passed by the blocks of layers \d to \d.*a single process trains it"):
        stage(ids if stage.is_first else torch.zeros(2, 8, 32, requires_grad=True), ids)
