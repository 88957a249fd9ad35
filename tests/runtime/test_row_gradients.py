"""Why: an embedding's gradient, added row by row, must be autograd's, and no table may be made to add it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from evenflow.runtime import WeightGradients

ROWS, WIDTH = 50, 8


class _Sizes(TorchDispatchMode):
    """Notes how large the tensors are that operators make."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not any(out is given for given in args):
            self.made.append(out.numel())
        return out


def _microbatch(number: int) -> tuple[Tensor, Tensor]:
    """Token ids, some of them several times, and the gradient of what they are embedded to."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, ROWS // 5, (2, 15), generator=generator)
    return ids, torch.randn(2, 15, WIDTH, generator=generator)


def _train(embedding: nn.Embedding, microbatches: int = 3) -> Tensor:
    for number in range(microbatches):
        ids, gradient = _microbatch(number)
        embedding(ids).backward(gradient)
    assert embedding.weight.grad is not None
    return embedding.weight.grad


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_the_gradient_is_autograds(padding_idx: int | None) -> None:
    whole = nn.Embedding(ROWS, WIDTH, padding_idx=padding_idx).double()
    own = copy.deepcopy(whole)
    WeightGradients(own)
    ids, _ = _microbatch(0)
    torch.testing.assert_close(own(ids), whole(ids), rtol=0, atol=0)
    torch.testing.assert_close(_train(own), _train(whole), rtol=1e-12, atol=1e-12)


def test_no_table_is_made_once_there_is_one() -> None:
    whole, own = nn.Embedding(ROWS, WIDTH), nn.Embedding(ROWS, WIDTH)
    WeightGradients(own)
    for embedding, expected in ((whole, True), (own, False)):
        _train(embedding, 1)
        ids, gradient = _microbatch(1)
        with _Sizes() as sizes:
            embedding(ids).backward(gradient)
        assert (ROWS * WIDTH in sizes.made) is expected


def test_bits_do_not_depend_on_threads() -> None:
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        embedding = nn.Embedding(ROWS, 4096)
        WeightGradients(embedding)
        ids = torch.arange(4096).remainder(7).view(2, -1)
        embedding(ids).backward(torch.randn(2, 2048, 4096))
        results.append(embedding.weight.grad)
    torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("special", [{"sparse": True}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}])
def test_special_embeddings_stay_as_they_are(special: dict[str, object]) -> None:
    embedding = nn.Embedding(ROWS, WIDTH, **special)
    WeightGradients(embedding)
    assert type(embedding) is nn.Embedding


def test_frozen_embeddings_get_no_gradient() -> None:
    embedding = nn.Embedding(ROWS, WIDTH)
    embedding.weight.requires_grad_(False)
    WeightGradients(embedding)
    assert not embedding(torch.tensor([1, 2])).requires_grad
