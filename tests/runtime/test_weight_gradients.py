"""Why: gradients put off must be those that autograd would have made, whatever a block does with its linear layers."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evenflow.errors import InputError
from evenflow.runtime import WeightGradients


class _Block(nn.Module):
    """A layer used twice, one without bias, one with frozen weight, one with frozen bias; counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(8, 8)
        self.plain = nn.Linear(8, 8, bias=False)
        self.frozen = nn.Linear(8, 8)
        self.frozen.weight.requires_grad_(False)
        self.half_frozen = nn.Linear(8, 8)
        self.half_frozen.bias.requires_grad_(False)
        self.forwards = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.forwards += 1
        mixed = self.plain(torch.relu(self.twice(self.twice(hidden))))
        return mixed + self.frozen(hidden) + self.half_frozen(hidden)


def _run(block: _Block, hidden: Tensor, recompute: bool) -> Tensor:
    out = checkpoint(block, hidden, use_reentrant=False) if recompute else block(hidden)
    assert isinstance(out, Tensor)
    return out.square().sum()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("input_needs_gradient", [False, True])
@pytest.mark.parametrize("halves", [False, True])
def test_gradients_are_autograds(recompute: bool, input_needs_gradient: bool, halves: bool) -> None:
    torch.manual_seed(0)
    whole = _Block()
    own = copy.deepcopy(whole)
    hidden = torch.randn(3, 5, 8)
    theirs = hidden.clone().requires_grad_(input_needs_gradient)
    ours = hidden.clone().requires_grad_(input_needs_gradient)
    queue = WeightGradients(own)
    for microbatch in range(2):
        _run(whole, theirs, recompute=False).backward()
        loss = _run(own, ours, recompute)
        if not halves:
            loss.backward()
            continue
        before = own.plain.weight.grad
        with queue.put_off(microbatch):
            loss.backward()
        assert own.plain.weight.grad is before  # nothing is made before it is asked for
        queue.run(microbatch)
    for (name, expected), (_, found) in zip(whole.named_parameters(), own.named_parameters(), strict=True):
        if expected.grad is None:
            assert found.grad is None, name
        else:
            assert found.grad is not None, name
            assert torch.allclose(found.grad, expected.grad, rtol=1e-5, atol=1e-5), name
    if input_needs_gradient:
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_a_recomputed_block_runs_its_forward_at_most_twice() -> None:
    """PyTorch's own split runs it once more for every group of parameters: 11 times for 2."""
    block = _Block()
    queue = WeightGradients(block)
    hidden = torch.randn(2, 4, 8, requires_grad=True)
    loss = _run(block, hidden, recompute=True)
    with queue.put_off(0):
        loss.backward()
    queue.run(0)
    assert block.forwards == 2


def test_it_knows_whose_memory_it_keeps_and_lets_go_of_it() -> None:
    block = nn.Sequential(nn.Linear(4, 4))
    queue = WeightGradients(block)
    hidden = torch.randn(2, 4, requires_grad=True)
    gradient = torch.randn(2, 4)
    output = block(hidden)
    with queue.put_off(7):
        output.backward(gradient)
    assert queue.holds(7, gradient)
    assert queue.holds(7, hidden)
    assert not queue.holds(7, torch.randn(2, 4))
    assert not queue.holds(6, gradient)
    queue.run(7)
    assert not queue.holds(7, gradient)


def test_an_output_may_be_changed_in_place() -> None:
    linear = nn.Sequential(nn.Linear(4, 4))
    WeightGradients(linear)
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    linear(hidden).relu_().sum().backward()
    assert linear[0].weight.grad is not None


def test_mixed_types_are_refused_in_one_line() -> None:
    linear = nn.Sequential(nn.Linear(4, 4))
    WeightGradients(linear)
    hidden = torch.randn(2, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(InputError, match="under autocast") as error:
        linear(hidden)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"a weight of torch.float32 was given torch.bfloat16; "):
        linear(hidden.bfloat16())


def test_autograd_sees_no_gradient_of_a_weight() -> None:
    linear = nn.Linear(4, 4)
    WeightGradients(linear)
    seen = []
    linear.weight.register_hook(seen.append)
    linear(torch.randn(2, 4, requires_grad=True)).sum().backward()
    assert seen == [None]
    assert linear.weight.grad is not None


@pytest.mark.parametrize("recompute", [False, True])
def test_the_queue_keeps_neither_the_graph_nor_the_gradient_of_the_input(recompute: bool) -> None:
    block = _Block()
    queue = WeightGradients(block)
    hidden = torch.randn(2, 4, 8, requires_grad=True)
    loss = _run(block, hidden.relu(), recompute)
    with queue.put_off(0):
        loss.backward()
    assert hidden.grad is not None
    memory = weakref.ref(hidden.grad.untyped_storage())
    del hidden, loss
    assert memory() is None
