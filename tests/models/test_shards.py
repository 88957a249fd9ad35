"""What a process does that shares sequences (cp) or experts (ep): together they do what the whole does, and no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import FalconConfig

from evenflow.errors import InputError
from evenflow.models import ModelSource, describe_model, find_model
from evenflow.models.shards import key_value_heads
from evenflow.spec import Attention, Exchanged, Layer, Matmul, Model, Work

SEQ = 48
SMALL = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 56, "max_position_embeddings": 128,
}  # fmt: skip
WINDOW = 32  # shorter than a sequence, and longer than a half of one
EXPERTS = 8
CONFIGS: dict[str, dict[str, object]] = {
    "llama": SMALL | {"model_type": "llama"},
    "gpt2": {"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 56, "n_positions": 128},
    "gemma2": SMALL | {"model_type": "gemma2", "head_dim": 8, "sliding_window": WINDOW},  # scores go to memory
    "mixtral": SMALL | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": SMALL
    | {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}  # fmt: skip


def source_of(folder: Path, sizes: dict[str, object]) -> ModelSource:
    (folder / "config.json").write_text(json.dumps(sizes))
    return find_model(str(folder))


def block(model: Model) -> Layer:
    return model.layers[1]


def forward(layer: Layer) -> Work:
    assert layer.forward_work is not None
    return layer.forward_work


CP_IN_CI = {("llama", 2), ("llama", 4), ("gpt2", 4), ("mixtral", 2)}


@pytest.mark.parametrize(
    ("name", "cp"),
    [
        pytest.param(name, cp, marks=() if (name, cp) in CP_IN_CI else pytest.mark.full)
        for name in CONFIGS
        for cp in (2, 4)
    ],
)
def test_what_shares_sequences_does_all_of_it_together(tmp_path: Path, name: str, cp: int) -> None:
    source = source_of(tmp_path, CONFIGS[name])
    whole, part = (describe_model(source, 2, SEQ, cp=own) for own in (1, cp))
    for own, of in zip(part.layers, whole.layers, strict=True):
        assert cp * own.forward_flops == of.forward_flops
        assert cp * own.backward_flops == of.backward_flops
        assert cp * own.weight_flops == of.weight_flops
        assert own.parameter_bytes == of.parameter_bytes
        assert own.weight_bytes == of.weight_bytes
        assert cp * own.output_bytes == of.output_bytes or of.kind == "head"  # whose loss is one number
    assert part.flops == whole.flops
    assert part.crossing == whole.crossing
    assert part.fingerprint != whole.fingerprint
    # Activations are of a part of the tokens, but for what no sequence changes (weights' own, say).
    assert block(whole).saved_bytes / cp <= block(part).saved_bytes < 1.02 * block(whole).saved_bytes / cp + 4096


def test_attention_has_the_keys_of_the_whole_sequence(tmp_path: Path) -> None:
    source = source_of(tmp_path, CONFIGS["llama"])
    part = describe_model(source, 2, SEQ, cp=4)
    attention = [own for own in forward(block(part)).operators if isinstance(own, Attention)]
    assert [(own.queries, own.keys) for own in attention] == [(SEQ // 4, SEQ)]
    assert {own.m for own in forward(block(part)).operators if isinstance(own, Matmul)} == {2 * SEQ // 4}
    # two heads of six numbers, keys and values, of two sequences, in four bytes
    assert block(part).exchanged == Exchanged(keys_bytes=2 * 2 * 6 * 2 * SEQ * 4)


def test_products_of_scores_have_the_keys_of_the_whole_sequence(tmp_path: Path) -> None:
    source = source_of(tmp_path, CONFIGS["gemma2"])
    part = describe_model(source, 2, SEQ, cp=4)
    scores = [own for own in forward(block(part)).operators if isinstance(own, Matmul) and own.count > 1]
    shapes = {(own.m, own.n, own.k) for own in scores}
    assert {(SEQ // 4, SEQ, 8), (SEQ // 4, 8, SEQ)} <= shapes
    assert block(part).exchanged == Exchanged(keys_bytes=2 * 2 * 8 * 2 * SEQ * 4)


def test_tokens_that_do_not_divide_are_rounded_up(tmp_path: Path) -> None:
    source = source_of(tmp_path, CONFIGS["llama"])
    part = describe_model(source, 2, SEQ + 2, cp=4)
    attention = [own for own in forward(block(part)).operators if isinstance(own, Attention)]
    assert [(own.queries, own.keys) for own in attention] == [(13, SEQ + 2)]


@pytest.mark.parametrize(("name", "width"), [("mixtral", 40), ("qwen3_moe", 16)])
def test_what_shares_experts_has_a_part_of_them(tmp_path: Path, name: str, width: int) -> None:
    source = source_of(tmp_path, CONFIGS[name])
    whole, part = (describe_model(source, 2, SEQ, ep=own) for own in (1, 4))
    own, of = block(part), block(whole)
    assert (own.forward_flops, own.backward_flops) == (of.forward_flops, of.backward_flops)  # as many tokens
    # Experts are three matrices each; all else of a block stays.
    sizes = 4 * EXPERTS * 3 * 24 * width
    assert of.parameter_bytes - own.parameter_bytes == sizes - sizes // 4
    assert own.expert_gradient_bytes == sizes // 4
    assert of.expert_gradient_bytes == 0
    assert own.largest_gradient_bytes < of.largest_gradient_bytes
    rows = 2 * 2 * SEQ  # two sequences, two experts for each token
    routed = [(one.m, one.count) for one in forward(own).operators if isinstance(one, Matmul) and one.count > 1]
    assert routed == [(rows // (EXPERTS // 4), EXPERTS // 4)] * 2  # gate and up are one product
    assert own.exchanged == Exchanged(routed_bytes=2 * SEQ * 24 * 4, routed_copies=2)
    assert own.saved_bytes == of.saved_bytes


def test_a_first_backward_makes_the_gradients_of_its_own_experts_alone(tmp_path: Path) -> None:
    source = source_of(tmp_path, CONFIGS["mixtral"])
    whole, part = (block(describe_model(source, 1, 8, ep=own)) for own in (1, 4))  # few tokens, so weights weigh most
    down = 4 * EXPERTS * 24 * 40
    assert whole.first_backward_peak_bytes - part.first_backward_peak_bytes >= down - down // 4
    assert whole.forward_peak_bytes == part.forward_peak_bytes


def test_both_together(tmp_path: Path) -> None:
    source = source_of(tmp_path, CONFIGS["mixtral"])
    whole, part = describe_model(source, 2, SEQ), describe_model(source, 2, SEQ, cp=2, ep=4)
    assert 2 * block(part).forward_flops == block(whole).forward_flops
    assert block(part).parameter_bytes == block(describe_model(source, 2, SEQ, ep=4)).parameter_bytes
    exchanged = block(part).exchanged
    assert exchanged is not None
    assert (exchanged.routed_bytes, exchanged.routed_copies) == (2 * SEQ // 2 * 24 * 4, 2)


def test_beside_tp(tmp_path: Path) -> None:
    source = source_of(tmp_path, CONFIGS["llama"])
    one, two = (block(describe_model(source, 2, SEQ, tp, cp=2)) for tp in (1, 2))
    assert one.exchanged is not None
    assert two.exchanged is not None
    assert one.exchanged.keys_bytes == 2 * two.exchanged.keys_bytes  # a head of each, instead of two
    whole = block(describe_model(source, 2, SEQ, 2))
    assert [(own.kind, 2 * own.size) for own in two.forward_combined] == [
        (own.kind, own.size) for own in whole.forward_combined
    ]


@pytest.mark.parametrize(
    ("name", "asked", "line"),
    [
        ("llama", {"ep": 2}, "--ep 2: .* has no experts; 1 would do"),
        ("mixtral", {"ep": 3}, "--ep 3: the 8 experts of .* do not divide by it; 1 or 2 or 4 or 8 would do"),
        ("llama", {"cp": 64}, "--cp 64 cuts 48 tokens into more parts than there are; 48 would be the most"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(tmp_path: Path, name: str, asked: dict[str, int], line: str) -> None:
    with pytest.raises(InputError, match=line):
        describe_model(source_of(tmp_path, CONFIGS[name]), 2, SEQ, **asked)


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        (
            SMALL | {"model_type": "llama4_text", "num_local_experts": 4, "intermediate_size_mlp": 40},
            "--ep 2: blocks of .* multiply tokens with their experts otherwise than routed row by row",
        ),
        (CONFIGS["qwen3_moe"] | {"mlp_only_layers": [0, 1]}, "--ep 2: no block of .* has experts; --ep 1 would do"),
    ],
    ids=["all of them on all tokens", "none"],
)
def test_experts_that_no_tokens_are_seen_to_be_sent_to_are_refused(
    tmp_path: Path, sizes: dict[str, object], line: str
) -> None:
    with pytest.raises(InputError, match=line):
        describe_model(source_of(tmp_path, sizes), 2, SEQ, ep=2)


@pytest.mark.parametrize(
    ("given", "heads"),
    [
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2),
        ({"multi_query": True}, 1),
        ({"multi_query": False}, 8),
    ],
)
def test_keys_are_gathered_as_many_as_there_are(given: dict[str, object], heads: int) -> None:
    """However many attention is handed: falcon copies them beside each other first."""
    assert key_value_heads(FalconConfig(num_attention_heads=8, **given)) == heads


def test_tokens_that_meet_outside_attention_are_refused(tmp_path: Path) -> None:
    sizes = SMALL | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "block_ff_dim": 40}
    source = source_of(tmp_path, sizes)
    describe_model(source, 2, SEQ)
    with pytest.raises(InputError, match=r"--cp 2: a block mixes tokens by .*conv.*; --cp 1 would do"):
        describe_model(source, 2, SEQ, cp=2)
