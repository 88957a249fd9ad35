"""Describing a model: exact parameters, FLOPs and bytes, against transformers, hand formulas and a real run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from evenflow.errors import InputError
from evenflow.models import ModelSource, build_stage, describe_model, draw_weights, find_model
from evenflow.models.stage import allocate
from evenflow.models.trace import _Feed, _record_stage
from evenflow.runtime import MemoryMeter

BATCH, SEQ = 2, 32
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "tie_word_embeddings": False,
}


def test_parameters_are_transformers_own(make_model: Callable[..., Path]) -> None:
    source = find_model(str(make_model()))
    model = describe_model(source, BATCH, SEQ)
    assert model.parameters == AutoModelForCausalLM.from_config(source.config).num_parameters()
    assert [layer.kind for layer in model.layers] == ["embedding", *["block"] * 4, "head"]
    assert model.architecture == "LlamaForCausalLM"


def test_the_experts_that_a_token_is_routed_to_are_counted(tmp_path: Path) -> None:
    facts = {
        **SMALL,
        "model_type": "mixtral",
        "num_key_value_heads": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(facts))
    block = describe_model(find_model(str(tmp_path)), BATCH, SEQ).layers[1]
    tokens, hidden, ffn, experts, chosen = BATCH * SEQ, 64, 128, 4, 2
    routed = 2 * tokens * chosen * 3 * hidden * ffn
    attention = 2 * 2 * BATCH * 4 * SEQ * SEQ * 16
    rest = 2 * tokens * hidden * (4 * hidden + experts) + attention
    assert block.forward_flops == routed + rest
    assert block.backward_flops == 2 * (routed + rest) + attention // 2  # it multiplies queries and keys once more


def test_flops_are_the_hand_formula(make_model: Callable[..., Path]) -> None:
    model = describe_model(find_model(str(make_model())), BATCH, SEQ)
    hidden, ffn, heads, head_dim, key_heads, vocabulary = 64, 128, 4, 16, 2, 384
    tokens = BATCH * SEQ
    matmul = 2 * tokens * (hidden * (2 * hidden + 2 * key_heads * head_dim) + 3 * hidden * ffn)
    attention = 2 * 2 * BATCH * heads * SEQ * SEQ * head_dim
    block = model.layers[1]
    assert block.forward_flops == matmul + attention
    # Backward: twice the matmuls; flash attention computes its scores once more, so five products instead of two.
    assert block.backward_flops == 2 * matmul + attention * 5 // 2
    assert model.layers[-1].forward_flops == 2 * tokens * hidden * vocabulary
    assert model.layers[0].forward_flops == 0


def test_saved_and_boundary_bytes_are_those_of_a_real_run(make_model: Callable[..., Path]) -> None:
    source = find_model(str(make_model()))
    model = describe_model(source, BATCH, SEQ)
    ids = torch.randint(0, 384, (BATCH, SEQ))
    for layer in range(len(model.layers)):
        stage = build_stage(source.config, [layer])
        draw_weights(stage, 0)
        feed = ids if stage.is_first else torch.randn(BATCH, SEQ, 64, requires_grad=True)
        saved = _Saved([*stage.parameters(), *stage.buffers()])
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            output = stage(feed, ids)
        assert model.layers[layer].saved_bytes == saved.bytes, model.layers[layer].name
        assert model.layers[layer].output_bytes == output.nbytes


def test_weight_flops_are_of_what_the_queue_makes() -> None:
    """Frozen layers and subclasses with a backward of their own are not split: their FLOPs are not W's."""
    stage = build_stage(AutoConfig.for_model("llama", **SMALL), [1])

    class Own(torch.nn.Linear):
        pass

    mlp = stage.blocks[0].mlp
    mlp.up_proj.weight.requires_grad_(False)
    mlp.down_proj.__class__ = Own
    with FakeTensorMode(allow_non_fake_inputs=True):
        allocate(stage)
        trace = _record_stage(stage, _Feed((BATCH, SEQ, 64), torch.float32)).trace()
    attention = 4 * 64 * 64
    assert trace.weight_flops == 2 * BATCH * SEQ * (attention + 64 * 128)


class _Saved:
    """Counts what autograd is given to keep: another way to the bytes that the trace finds alive after a forward."""

    def __init__(self, not_counted: list[torch.Tensor]) -> None:
        self.seen = {tensor.untyped_storage()._cdata for tensor in not_counted}
        self.bytes = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self.bytes += storage.nbytes()
        return tensor


def test_equal_blocks_share_a_signature_and_others_do_not(make_model: Callable[..., Path]) -> None:
    model = describe_model(find_model(str(make_model())), BATCH, SEQ)
    assert len({layer.signature for layer in model.layers}) == 3
    assert len({layer.signature for layer in model.layers[1:5]}) == 1


def test_a_model_too_big_for_this_machine_is_described_without_allocating_it(
    make_model: Callable[..., Path],
) -> None:
    folder = make_model(
        hidden_size=16384,
        intermediate_size=53248,
        num_attention_heads=128,
        num_key_value_heads=8,
        num_hidden_layers=126,
        vocab_size=128256,
        max_position_embeddings=8192,
    )
    meter = MemoryMeter()
    model = describe_model(find_model(str(folder)), 1, 8192)
    assert model.parameters == 405_853_388_800
    assert meter.peak_bytes() < 300 * 2**20


def test_gpt2_without_a_pipeline_plan_of_its_own_is_described(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=2, vocab_size=100, n_positions=64)
    config.save_pretrained(tmp_path)
    model = describe_model(find_model(str(tmp_path)), 1, 16)
    assert [layer.kind for layer in model.layers] == ["embedding", "block", "block", "head"]
    assert model.tied_embeddings
    assert model.parameters == AutoModelForCausalLM.from_config(config).num_parameters()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "has no config.json"),
        ("{nonsense", "not readable JSON"),
        (json.dumps({"hidden_size": 3}), "no model_type"),
        (json.dumps({"model_type": "lama"}), "'lama' is not known"),
        (json.dumps({"model_type": "clip"}), "not a causal language model"),
        (json.dumps({"model_type": "llama", "hidden_size": 65, "num_attention_heads": 4}), "hidden size"),
    ],
)
def test_wrong_configs_are_refused_in_one_line(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=says) as error:
        describe_model(find_model(str(tmp_path)), 1, 16)
    assert "\n" not in str(error.value)


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        find_model(str(tmp_path / "nowhere"))


def test_a_sequence_longer_than_the_model_reads(make_model: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="at most 128 tokens"):
        describe_model(find_model(str(make_model())), 1, 256)


def test_code_beside_a_config_is_never_run(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(auto_map={"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.EvilConfig"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    describe_model(find_model(str(folder)), 1, 16)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_hands_more_than_hidden_states_on_says_so_where_it_cannot_be_traced() -> None:
    config = AutoConfig.for_model(
        "cpmant", hidden_size=64, num_attention_heads=4, dim_head=16, dim_ff=64, num_hidden_layers=2, vocab_size=64
    )
    with pytest.raises(InputError, match=r"position_bias.*would do"):
        describe_model(ModelSource("tiny", config, None), BATCH, SEQ)
