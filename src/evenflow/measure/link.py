"""Times the link between neighbouring ranks, and the sum over all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from evenflow.cost import LinkCost
from evenflow.runtime import Transport, synchronize

_SMALL = 1 << 10
_ROUNDS = 30
_LARGE_ROUNDS = 12
_CPU = torch.device("cpu")
_FASTEST = 1e11  # bytes a second: no memory is faster, so a quicker transfer was not measured but disturbed


def time_link(
    rank: int, ranks: int, transport: Transport, boundary_bytes: int, device: torch.device = _CPU
) -> LinkCost:
    """Latency and bandwidth of one transfer, from round trips of a small and of the real size.

    Ranks play in pairs, all pairs at once; a last odd rank has no partner and reports a free link.
    """
    partner = rank ^ 1
    if partner >= ranks:
        return LinkCost(0.0, float("inf"))
    # A small message's best time is its latency: its median is mostly how long a sleeping rank takes to wake.
    latency = min(_one_way(rank, partner, transport, _SMALL, device))
    real = median(_one_way(rank, partner, transport, boundary_bytes, device))
    return LinkCost(latency, boundary_bytes / max(real - latency, boundary_bytes / _FASTEST))


def time_sum(transport: Transport, size: int) -> float:
    """Seconds of a sum over all ranks of `size` numbers."""
    numbers = torch.zeros(size, dtype=torch.float64)
    seconds: list[float] = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        transport.sum(numbers)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def time_adding(ranks: int, transport: Transport, size: int) -> LinkCost:
    """What a turn of a ring over all ranks takes, from sums of a small and of a large tensor.

    The large one is a message of fp32 numbers in host memory, made afresh each time, as gradients are laid into one.

    Args:
        ranks: how many add, at least 2.
        transport: over which.
        size: bytes of the large tensor.
    """
    turns = 2 * (ranks - 1)
    small, gradients = torch.zeros(1), torch.zeros(size // 4)

    def seconds(make: Callable[[], Tensor], rounds: int) -> list[float]:
        found: list[float] = []
        for _ in range(rounds):
            start = time.perf_counter()
            transport.sum(make())
            found.append(time.perf_counter() - start)
        return found

    latency = min(seconds(lambda: small, _ROUNDS)) / turns
    real = median(seconds(lambda: torch.empty_like(gradients).copy_(gradients), _LARGE_ROUNDS)[1:]) / turns
    part = size / ranks
    return LinkCost(latency, part / max(real - latency, part / _FASTEST))


def _one_way(rank: int, partner: int, transport: Transport, size: int, device: torch.device) -> list[float]:
    out = torch.zeros(size // 4, device=device)
    back = torch.empty(size // 4, device=device)
    seconds: list[float] = []
    for tag in range(_ROUNDS):
        start = time.perf_counter()
        if rank < partner:
            transport.send(out, partner, tag).wait()
            transport.receive(back, partner, tag).wait()
        else:
            transport.receive(back, partner, tag).wait()
            transport.send(out, partner, tag).wait()
        synchronize(device)  # NCCL's `wait` holds up the stream alone
        seconds.append((time.perf_counter() - start) / 2)
    return seconds
