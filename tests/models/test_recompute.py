"""Why: recomputing must change no bit, run a block's forward twice and no more, and hold what the trace says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from transformers import AutoConfig

from evenflow.models import build_stage, describe_model, draw_weights, find_model
from evenflow.models.recompute import keep_modules, recompute_modules
from evenflow.runtime import LiveBytes, WeightGradients
from evenflow.spec import RECOMPUTES, Recompute

BATCH, SEQ, HIDDEN = 2, 32, 64
# Of a block, what runs again in which way: its first norm, its attention.
PARTS = {"input_layernorm": ("full",), "self_attn": ("selective", "full")}


def _count_forwards(modules: list[nn.Module]) -> list[int]:
    """How often the forward of each module ran; the list changes as they do."""
    counts = [0] * len(modules)

    def count(place: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            counts[place] += 1

        return hook

    for place, module in enumerate(modules):
        inner = next(own for own in (module, *module.children()) if not list(own.children()))
        inner.register_forward_pre_hook(count(place))  # called within: the module itself is called once
    return counts


@pytest.mark.parametrize("halves", [False, True])
def test_each_blocks_forward_runs_twice_and_gives_the_same_bits(make_model: Callable[..., Path], halves: bool) -> None:
    """PyTorch's own I and W run it once more for every group of parameters: 11 times for 2."""
    config = find_model(str(make_model())).config
    ids = torch.randint(0, 384, (BATCH, SEQ))
    results = []
    for recompute in RECOMPUTES:
        stage = build_stage(config, range(6), recompute=recompute)
        draw_weights(stage, 0)
        counts = _count_forwards([getattr(block, part) for block in stage.blocks for part in PARTS])
        queue = WeightGradients(stage)
        loss = stage(ids, ids)
        with queue.put_off(0) if halves else nullcontext():
            loss.backward()
        after_input = list(counts)
        if halves:
            queue.run(0)
        assert counts == after_input, "W needs no forward"
        assert counts == [2 if recompute in modes else 1 for modes in PARTS.values()] * 4
        results.append([loss, *(parameter.grad for parameter in stage.parameters())])
    for other in results[1:]:
        assert all(torch.equal(own, them) for own, them in zip(results[0], other, strict=True))


def test_what_a_block_draws_is_drawn_again() -> None:
    config = AutoConfig.for_model(
        "llama",
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=64,
        attention_dropout=0.5,
        tie_word_embeddings=False,
    )
    ids = torch.randint(0, 64, (BATCH, SEQ))
    results = []
    for recompute in RECOMPUTES:
        stage = build_stage(config, range(4), recompute=recompute).train()
        draw_weights(stage, 0)
        torch.manual_seed(1)
        loss = stage(ids, ids)
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in stage.parameters()), torch.rand(3)])
    for other in results[1:]:
        assert all(torch.equal(own, them) for own, them in zip(results[0], other, strict=True))


def test_gradients_flow_into_whatever_a_block_is_called_with() -> None:
    block = nn.Bilinear(4, 4, 4)
    recompute_modules([block])
    left, right = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    block(left, input2=right).sum().backward()
    assert left.grad is not None
    assert right.grad is not None


def test_a_block_keeps_again_what_it_needs() -> None:
    block = nn.Linear(4, 4)
    calls = []
    block.register_forward_pre_hook(lambda *_: calls.append(0))
    recompute_modules([block])
    with torch.no_grad():
        block(torch.zeros(1, 4))
    keep_modules([block])
    assert "forward" not in vars(block)
    block(torch.zeros(1, 4)).sum().backward()


@pytest.mark.parametrize("recompute", RECOMPUTES)
@pytest.mark.parametrize("layer", [0, 1, 5])
def test_the_traced_bytes_are_those_of_real_tensors(
    make_model: Callable[..., Path], layer: int, recompute: Recompute
) -> None:
    source = find_model(str(make_model()))
    traced = describe_model(source, BATCH, SEQ).under(recompute).layers[layer]
    stage = build_stage(source.config, [layer], recompute=recompute)
    draw_weights(stage, 0)
    queue = WeightGradients(stage)
    for parameter in stage.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state = [tensor for own in stage.parameters() for tensor in (own, own.grad)]
    for halves in (False, True):
        leaf = torch.randn(BATCH, SEQ, HIDDEN, requires_grad=True)
        with LiveBytes([*state, *stage.buffers(), leaf]) as live:
            ids = torch.randint(0, 384, (BATCH, SEQ))
            began = live.now
            output = stage(ids if stage.is_first else leaf, ids)
            assert live.peak - began == traced.forward_peak_bytes
            root, seed = get_gradient_edge(output), torch.ones_like(output)
            del output, ids
            own_input = 0 if stage.is_first else leaf.nbytes
            assert live.now - seed.nbytes + own_input == traced.saved_bytes
            started = live.peak = live.now
            with queue.put_off(0) if halves else nullcontext():
                torch.autograd.backward((root,), (seed,))
            peak = traced.input_peak_bytes if halves else traced.backward_peak_bytes
            # The trace lets go of the stage's input once nothing needs it; here the leaf is held, and not counted.
            assert peak <= live.peak - started <= peak + own_input
            del root, seed
            leaf.grad = None
            assert live.now == (traced.pending_bytes if halves else 0)
        queue._queues.clear()
