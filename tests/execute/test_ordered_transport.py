"""Why: NCCL has no tags, and no machine with several GPUs is here; an ordered transport between threads stands in.

Every schedule runs on it with sends that complete only once they are received, so a receive in another order than its
send would bring the wrong tensor, and a program that needs buffering would hang.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch

from evenflow.execute import Executor
from evenflow.program import SCHEDULES, Program, build_program, place, verify
from evenflow.runtime import InMemoryNetwork, MadeUpTransport
from evenflow.spec import Recompute
from tests.conftest import TINY_LLAMA
from tests.execute.alone import is_empty, make_executor
from tests.parity.ranks import program_of, tokens_of
from tests.parity.test_whole import place_stages


@dataclass
class Ran:
    losses: list[float]
    weights: dict[str, torch.Tensor]


def _run(program: Program, steps: int = 2, recompute: Recompute = "none") -> Ran:
    verify(program)
    network = InMemoryNetwork(len(program.ranks), timeout_s=30)
    executors = [
        make_executor(program, rank, network.transport(rank), recompute=recompute) for rank in range(len(program.ranks))
    ]

    def train(executor: Executor) -> list[float]:
        return [
            executor.run_step(lambda k, step=step: tokens_of(step, k, 2, 16, TINY_LLAMA["vocab_size"]), 1e-3).loss
            for step in range(steps)
        ]

    with ThreadPoolExecutor(len(executors)) as pool:
        losses = list(pool.map(train, executors))
    assert all(own == losses[0] for own in losses)
    weights = {name: own for executor in executors for name, own in executor.optimizer.parameters.items()}
    assert all(map(is_empty, executors))
    return Ran(losses[0], weights)


@pytest.fixture(scope="module")
def alone() -> Ran:
    torch.set_num_threads(1)
    return _run(build_program("1f1b", 1, 5))


@pytest.mark.parametrize("schedule", [*SCHEDULES, "auto"])
@pytest.mark.parametrize(("ranks", "recompute"), [(2, "none"), (3, "none"), (2, "full"), (3, "selective")])
def test_every_schedule_gives_one_processs_bits_without_tags(
    alone: Ran, schedule: str, ranks: int, recompute: Recompute
) -> None:
    ran = _run(program_of(schedule, place_stages(schedule, "own", ranks), 5), recompute=recompute)
    assert ran.losses == alone.losses
    assert all(torch.equal(own, alone.weights[name]) for name, own in ran.weights.items())


@pytest.mark.parametrize("placement", ["v", "loop"])
def test_stages_of_several_a_rank_uneven(alone: Ran, placement: str) -> None:
    ran = _run(program_of("zb-1p", place(placement, 2, 3), 5))
    assert ran.losses == alone.losses


@pytest.mark.parametrize("schedule", ["1f1b", "zb-v"])
def test_one_rank_runs_alone_among_made_up_peers(schedule: str) -> None:
    """What `rehearse` needs: any rank of a plan for many, on one device, with finite figures."""
    program = program_of(schedule, place_stages(schedule, "own", 2), 6)
    executor = make_executor(program, 1, MadeUpTransport())
    result = executor.run_step(lambda k: tokens_of(0, k, 2, 16, TINY_LLAMA["vocab_size"]), 1e-3)
    assert len(result.spans) == len(program.ranks[1])
    assert result.grad_norm > 0
