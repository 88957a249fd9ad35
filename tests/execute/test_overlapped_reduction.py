"""Why: sums over replicas are to hide behind the cooldown, so what starts one must not wait for it; NORM does."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from evenflow.plan import Axes, Coordinates
from evenflow.program import Backward, Norm, Program, ReduceGrad, build_program, lower, verify
from evenflow.runtime import InMemoryNetwork, Mesh, Reductions, reductions
from tests.conftest import TINY_LLAMA
from tests.execute.alone import SHAPE, make_executor

SLOW_S = 6.0  # far more than a tiny model's step, so that who waits for a sum cannot be missed
RANKS, MICROBATCHES = 2, 4


@dataclass
class _SlowGroup:
    """Stands for a group of replicas whose every sum takes long from when it was started."""

    waited: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def start(self) -> _SlowSum:
        self.ends.append(time.perf_counter() + SLOW_S)
        return _SlowSum(self, self.ends[-1])


@dataclass
class _SlowSum:
    group: _SlowGroup
    end: float

    def wait(self) -> None:
        self.group.waited.append(time.perf_counter())
        time.sleep(max(self.end - time.perf_counter(), 0))


def _run(program: Program, rank: int, network: InMemoryNetwork) -> tuple[_SlowGroup, tuple[tuple[float, float], ...]]:
    group: Any = _SlowGroup()
    mesh = Mesh(Axes(pp=RANKS, dp=2), Coordinates(rank), dp=group)
    executor = make_executor(program, rank, network.transport(rank), mesh=mesh)
    parameters = {number: own.stage.named_model_parameters() for number, own in executor.runners.items()}
    executor.reductions = Reductions(program, mesh, parameters)

    def tokens(number: int) -> Tensor:
        return torch.randint(0, TINY_LLAMA["vocab_size"], SHAPE, generator=torch.Generator().manual_seed(number))

    predicted = 2 * MICROBATCHES * SHAPE[0] * (SHAPE[1] - 1)  # the other replica's too
    return group, executor.run_step(tokens, 1e-3, predicted=predicted).spans


def test_a_sum_that_takes_long_is_waited_for_at_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(reductions.dist, "all_reduce", lambda *_, group, async_op: group.start())
    interleaved = build_program("interleaved", (0, 1, 0, 1), MICROBATCHES)
    program = lower(interleaved.compute_order(), interleaved.stage_rank, MICROBATCHES, reduces=True)
    verify(program)
    network = InMemoryNetwork(RANKS, timeout_s=60)
    with ThreadPoolExecutor(RANKS) as pool:
        results = list(pool.map(lambda rank: _run(program, rank, network), range(RANKS)))
    for rank, (group, spans) in enumerate(results):
        actions = program.ranks[rank]
        reduces = [number for number, own in enumerate(actions) if isinstance(own, ReduceGrad)]
        norm = next(number for number, own in enumerate(actions) if isinstance(own, Norm))
        assert len(reduces) == 2
        cooldown = [number for number, own in enumerate(actions) if isinstance(own, Backward) and number > reduces[0]]
        assert cooldown, "the later stage's gradients are on their way while the earlier stage still makes its own"
        assert spans[cooldown[-1]][1] < group.ends[0], "the first sum is not there before the last backward is done"
        for number in reduces:
            begin, end = spans[number]
            assert end - begin < SLOW_S / 2
        assert min(group.waited) >= spans[norm - 1][1], "nothing waits before NORM"
        assert spans[norm][0] >= max(group.ends), "NORM begins to compute when all sums are there"
