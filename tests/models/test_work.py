"""What a traced layer runs, operator by operator: the products that its dimensions say, and nothing uncounted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from evenflow.models import describe_model, find_model
from evenflow.spec import Attention, Layer, Matmul, Model, Traffic, Work

BATCH, SEQ, HIDDEN, WIDE, VOCABULARY = 2, 16, 32, 48, 64
LLAMA = {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": SEQ,
}  # fmt: skip
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}


def described(folder: Path, sizes: dict[str, object]) -> Model:
    (folder / "config.json").write_text(json.dumps(sizes))
    return describe_model(find_model(str(folder)), BATCH, SEQ)


def products(work: Work | None) -> Counter[tuple[int, int, int, int]]:
    assert work is not None
    return Counter((own.m, own.n, own.k, own.count) for own in work.operators if isinstance(own, Matmul))


def test_a_block_runs_its_products(tmp_path: Path) -> None:
    block = described(tmp_path, LLAMA).layers[1]
    tokens, narrow = BATCH * SEQ, HIDDEN // 2
    pairs = [(HIDDEN, HIDDEN)] * 2 + [(HIDDEN, narrow)] * 2 + [(HIDDEN, WIDE)] * 2 + [(WIDE, HIDDEN)]
    assert products(block.forward_work) == Counter((tokens, out, into, 1) for into, out in pairs)
    assert products(block.input_work) == Counter((tokens, into, out, 1) for into, out in pairs)
    assert products(block.weight_work) == Counter((out, into, tokens, 1) for into, out in pairs)
    for work in (block.forward_work, block.input_work):
        assert work is not None
        assert Attention(BATCH, 4, SEQ, SEQ, HIDDEN // 4, HIDDEN // 4) in work.operators
        assert work.kernels > len(work.operators)  # traffic is added up
        assert next(own for own in work.operators if isinstance(own, Traffic)).moved_bytes > 10 * tokens * HIDDEN * 4


def test_an_embedding_moves_rows_and_no_table(tmp_path: Path) -> None:
    work = described(tmp_path, LLAMA | {"vocab_size": 100 * VOCABULARY}).layers[0].forward_work
    assert work is not None
    (moved,) = work.operators
    assert isinstance(moved, Traffic)
    assert moved.moved_bytes < 3 * BATCH * SEQ * HIDDEN * 4


@pytest.mark.parametrize("sizes", [LLAMA, MIXTRAL], ids=["llama", "mixtral"])
def test_operators_have_the_flops_that_are_counted(tmp_path: Path, sizes: dict[str, object]) -> None:
    def flops(layer: Layer) -> int:
        assert layer.forward_work is not None
        return sum(own.flops for own in layer.forward_work.operators)

    for layer in described(tmp_path, sizes).layers:
        assert flops(layer) == layer.forward_flops


def test_experts_share_rows_out_evenly(tmp_path: Path) -> None:
    block = described(tmp_path, MIXTRAL).layers[1]
    each = BATCH * SEQ * 2 // 4
    assert products(block.forward_work)[each, HIDDEN, WIDE, 4] == 1
