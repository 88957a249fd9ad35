"""How far a rank's host clock is from rank 0's, so that the spans of ranks on several hosts lie on one time scale.

Processes of one host read one monotonic clock. Those of two hosts begin at different moments and drift by some
microseconds a second. A question and its answer bound the difference by half the time they take (Cristian,
"Probabilistic clock synchronization", 1989); of many the quickest is believed. Asked before the first step and again
after the last one, the differences give the drift between them.
"""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from evenflow.runtime.transport import Transport

_ROUNDS = 30
# What tells hosts' monotonic clocks apart: the boot, and a container's own offset from it (Linux).
_CLOCK_FILES = (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/timens_offsets"))


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """What one comparison of clocks found.

    Attributes:
        at_s: when, on this rank's clock.
        offset_s: what to add to a moment of this rank's clock to have it on rank 0's.
        error_s: the most by which that may be wrong; zero where both read one clock.
    """

    at_s: float
    offset_s: float
    error_s: float


def clock_offset(
    transport: Transport,
    rank: int,
    ranks: int,
    clock: Callable[[], float] = time.perf_counter,
    clock_name: int | None = None,
) -> ClockOffset:
    """Compare this rank's clock with rank 0's; all ranks have to come, and no other message may be under way.

    Args:
        transport: carries tensors of host memory between any two ranks.
        rank: which this is.
        ranks: how many there are.
        clock: what it reads, in seconds.
        clock_name: a number that those who read the same clock share (by default this host's).

    Raises:
        PeerLostError: another rank is gone.
    """
    names = torch.zeros(ranks, dtype=torch.float64)
    names[rank] = float(host_clock_name() if clock_name is None else clock_name)
    transport.sum(names)
    apart = (names != names[0]).tolist()  # who has to ask
    if apart[rank]:
        return _ask(transport, clock)
    if rank == 0:
        for other in range(1, ranks):
            if apart[other]:
                _answer(transport, other, clock)
    return ClockOffset(clock(), 0.0, 0.0)


def host_clock_name() -> int:
    """A number of 52 bits, which a float holds exactly, that this host's clock has and no other's."""
    facts = [path.read_bytes() for path in _CLOCK_FILES if path.exists()] or [socket.gethostname().encode()]
    return int.from_bytes(hashlib.sha256(b"\n".join(facts)).digest()[:8], "big") >> 12


def _ask(transport: Transport, clock: Callable[[], float]) -> ClockOffset:
    best: ClockOffset | None = None
    question, answer = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for _ in range(_ROUNDS):
        coming = transport.receive(answer, 0, 1)
        asked = clock()
        going = transport.send(question, 0, 0)
        coming.wait()
        answered = clock()
        going.wait()
        middle, error = (asked + answered) / 2, (answered - asked) / 2
        if best is None or error < best.error_s:
            best = ClockOffset(middle, float(answer) - middle, error)
    assert best is not None, "there is at least one round"
    return best


def _answer(transport: Transport, rank: int, clock: Callable[[], float]) -> None:
    question = torch.zeros(1, dtype=torch.float64)
    for _ in range(_ROUNDS):
        transport.receive(question, rank, 0).wait()
        transport.send(torch.tensor([clock()], dtype=torch.float64), rank, 1).wait()
