"""The loss of logits in parts is that of the whole ones, and so is its gradient."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.loss.loss_utils import ForCausalLMLoss

from evenflow.models import Cut, build_skeleton
from evenflow.models.anatomy import dissect
from evenflow.models.shared_loss import shared_loss
from evenflow.runtime import ThreadMeeting, ThreadTensorGroup

VOCABULARY = 11  # which neither 2 nor 3 divide


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("items", "z_loss"), [(None, 0.0), (5, 0.0), (5, 0.02)])
def test_parts_have_the_loss_and_gradients_of_the_whole(size: int, items: int | None, z_loss: float) -> None:
    """Also where labels are masked, and where logits are so large that their exponentials are not."""
    torch.manual_seed(0)
    logits = torch.randn(2, 6, VOCABULARY) * torch.tensor([1.0, 300.0]).view(2, 1, 1)
    labels = torch.randint(0, VOCABULARY, (2, 6))
    labels[0, 2:4] = -100
    whole = logits.clone().requires_grad_()
    expected = ForCausalLMLoss(whole, labels, VOCABULARY, num_items_in_batch=items)
    divisors = whole[:, :-1].logsumexp(-1)[labels[:, 1:] != -100]
    expected = expected + z_loss * divisors.square().sum() / (items or len(divisors))
    expected.backward()
    meeting = ThreadMeeting(size)

    def run(index: int) -> tuple[Tensor, Tensor]:
        cut = Cut(tuple(logits.shape), 2, 1, size, index)
        part = cut.take(logits).requires_grad_()
        loss = shared_loss(
            ThreadTensorGroup(meeting, index),
            cut.begin,
            part,
            labels,
            VOCABULARY,
            num_items_in_batch=items,
            z_loss=z_loss,
        )
        loss.backward()
        assert part.grad is not None
        return loss.detach(), part.grad

    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(run, range(size)))
    assert all(torch.equal(loss, found[0][0]) for loss, _ in found)
    assert float(found[0][0]) == pytest.approx(float(expected.detach()), rel=1e-6)
    gradient = Cut(tuple(logits.shape), 2, 1, size, 0).join([own for _, own in found])
    assert torch.allclose(gradient, whole.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("family", "is_plain"), [("llama", True), ("qwen3", True), ("granite", False), ("gemma2", False)]
)
def test_logits_that_are_scaled_or_capped_are_gathered(family: str, is_plain: bool) -> None:
    """Granite divides its logits and Gemma 2 caps them, between head and loss."""
    config = AutoConfig.for_model(family, num_hidden_layers=2, vocab_size=128, pad_token_id=0)
    assert dissect(build_skeleton(config)).plain_loss == is_plain
