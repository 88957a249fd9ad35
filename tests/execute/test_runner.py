"""Why: a first gradient that shares memory with a tensor in use would change it, or be changed, without a word."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from evenflow.execute.runner import StageRunner
from evenflow.models import Microbatch

MICROBATCHES, SHAPE = 3, (1, 5, 8)
IDS = Microbatch(torch.zeros(SHAPE[:2], dtype=torch.long))


class _Stage(nn.Module):
    """A position table of one row less dimension than the hidden states, added after a linear layer or alone."""

    is_first, device = False, torch.device("cpu")

    def __init__(self, has_linear: bool, is_last: bool) -> None:
        super().__init__()
        self.is_last = is_last
        self.table = nn.Parameter(torch.randn(SHAPE[1] * SHAPE[2]))
        self.linear = nn.Linear(SHAPE[2], SHAPE[2]) if has_linear else nn.Identity()

    def forward(self, hidden: Tensor, labels: Tensor | None, *_: object) -> Tensor:
        output = self.linear(hidden.view(-1, SHAPE[-1])).view(*SHAPE) + self.table.view(*SHAPE)
        return output.square().sum() if self.is_last else output


def _tensor(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("has_linear", [True, False])
@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("halves", [True, False])
def test_a_first_gradient_shares_no_memory(has_linear: bool, is_last: bool, halves: bool) -> None:
    torch.manual_seed(0)
    stage = _Stage(has_linear, is_last)
    whole = copy.deepcopy(stage)
    runner = StageRunner(stage, MICROBATCHES)  # type: ignore[arg-type]  # all that it asks of a stage
    runner.begin_step(MICROBATCHES * 4)
    buffer = torch.empty(SHAPE)  # every output gradient is received into the same one
    sent: list[tuple[Tensor, Tensor]] = []
    for k in range(MICROBATCHES):
        runner.forward(k, _tensor(k), IDS)
        gradient = None if is_last else buffer.copy_(_tensor(-1 - k))
        own = (runner.input_backward if halves else runner.backward)(k, gradient)
        assert own is not None
        sent.append((own, own.clone()))
        if gradient is not None and runner.keeps(k, gradient):
            buffer = torch.empty(SHAPE)
    for k in range(MICROBATCHES if halves else 0):
        runner.weight_backward(k)
    for k in range(MICROBATCHES):
        output = whole(_tensor(k), None)
        output.backward(torch.tensor(1 / MICROBATCHES) if is_last else _tensor(-1 - k))
    for (name, own_weight), (_, expected) in zip(stage.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.allclose(own_weight.grad, expected.grad, rtol=1e-5), name
    assert all(torch.equal(now, then) for now, then in sent)


class _SequenceFirst(_Stage):
    def forward(self, hidden: Tensor, labels: Tensor | None, *_: object) -> Tensor:
        return self.linear(hidden.transpose(0, 1)).transpose(0, 1)


def test_what_is_handed_over_is_contiguous_whatever_a_block_makes() -> None:
    hidden = torch.randn(2, 5, SHAPE[2])
    for runner in (StageRunner(_SequenceFirst(True, False), 1, trains) for trains in (True, False)):  # type: ignore[arg-type]
        output = (runner.forward if runner.weight_gradients else runner.evaluate)(0, hidden, IDS)
        assert output.shape == hidden.shape
        assert output.is_contiguous()
