"""What other pipelines get wrong, as regressions of ours; beside each what PyTorch 2.13 makes of the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from evenflow.errors import FaultError
from evenflow.execute import Executor
from evenflow.launch import ForkServer
from evenflow.program import (
    Action,
    Program,
    ReceiveBackward,
    ReceiveForward,
    action_text,
    build_program,
    lower,
    parse_order,
    place,
    verify,
)
from evenflow.runtime import InMemoryNetwork
from tests.conftest import TINY_LLAMA
from tests.execute.alone import SHAPE, is_empty, make_executor
from tests.parity.ranks import GradientKeeper, tokens_of
from tests.parity.test_whole import whole_model

theirs = pytest.importorskip("torch.distributed.pipelining.schedules")
MICROBATCHES = 4


@dataclass
class Ran:
    """Of all ranks together: a step's losses by microbatch, the first step's gradients before clipping."""

    losses: tuple[float, ...]
    gradients: dict[str, Tensor]


def executors_of(program: Program) -> list[Executor]:
    torch.set_num_threads(1)
    verify(program)
    network = InMemoryNetwork(len(program.ranks), timeout_s=30)
    return [
        make_executor(program, rank, network.transport(rank), optimizer=GradientKeeper)
        for rank in range(len(program.ranks))
    ]


def run_step(executors: list[Executor], step: int = 1, shape: tuple[int, int] = SHAPE) -> Ran:
    def run(executor: Executor) -> tuple[float, ...]:
        def tokens(microbatch: int) -> Tensor:
            return tokens_of(step, microbatch, *shape, TINY_LLAMA["vocab_size"])

        return executor.run_step(tokens, 1e-3, shape=shape).losses

    with ThreadPoolExecutor(len(executors)) as pool:
        losses = [own for own in pool.map(run, executors) if own]
    assert all(map(is_empty, executors))
    return Ran(losses[0], {name: own for executor in executors for name, own in executor.optimizer.first.items()})


def assert_equals_whole(ran: Ran, shape: tuple[int, int] = SHAPE) -> None:
    loss, gradients = whole_model(TINY_LLAMA, 3, MICROBATCHES, shape)
    assert sum(ran.losses) == pytest.approx(loss, rel=1e-6)
    assert ran.gradients.keys() == gradients.keys()
    for name, expected in gradients.items():
        error = torch.linalg.vector_norm(ran.gradients[name] - expected) / torch.linalg.vector_norm(expected)
        assert error <= 1e-6, name


# ------------------------------------------------- microbatches in another order on the last stage


@pytest.mark.parametrize(
    "last",
    ["1F1 1F0 1B1 1B0 1F2 1B2 1F3 1B3", "1F1 1B1 1F0 1B0 1F3 1F2 1B2 1B3", "1F3 1F2 1F1 1F0 1B0 1B2 1B1 1B3"],
)
def test_losses_belong_to_their_microbatches_in_whatever_order_they_come(last: str) -> None:
    program = lower(parse_order(["0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3", last]), (0, 1), MICROBATCHES)
    ran = run_step(executors_of(program))
    assert_equals_whole(ran)
    in_order = run_step(executors_of(build_program("1f1b", 2, MICROBATCHES)))
    assert ran.losses == in_order.losses


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """PyTorch's process group of one rank."""
    with mock.patch.dict(os.environ, {"GLOO_SOCKET_IFNAME": "lo"}):
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _their_gradient(order: str) -> Tensor:
    """The first stage's weight gradient as PyTorch's runtime computes it, both stages on one rank."""
    torch.manual_seed(0)
    modules = [nn.Linear(4, 4), nn.Linear(4, 4)]
    device = torch.device("cpu")
    stages = [dist.pipelining.PipelineStage(own, number, 2, device) for number, own in enumerate(modules)]
    runtime = theirs._PipelineScheduleRuntime(stages, 2, loss_fn=lambda output, target: ((output - target) ** 2).mean())
    runtime._prepare_schedule_with_comms({0: [theirs._Action.from_str(token) for token in order.split()]})
    batch = torch.arange(16.0).view(4, 4) / 16
    runtime.step(batch, target=batch.flip(0) ** 2, return_outputs=False)
    return modules[0].weight.grad


@pytest.mark.usefixtures("alone")
def test_pytorch_takes_losses_by_order_of_arrival() -> None:
    right = _their_gradient("0F0 0F1 1F0 1F1 1B0 1B1 0B0 0B1")
    wrong = _their_gradient("0F0 0F1 1F1 1F0 1B1 1B0 0B1 0B0")
    assert torch.linalg.vector_norm(wrong - right) > 0.1 * torch.linalg.vector_norm(right)  # and nothing is said
    with pytest.raises(RuntimeError, match="Loss for microbatch 1 is not available"):
        _their_gradient("0F0 0F1 1F1 1B1 1F0 1B0 0B1 0B0")


# ------------------------------------------------- V placement with early receives


def _with_early_receives(program: Program) -> Program:
    """Every receive before all else; on each directed edge still in the order of the sends."""

    def early(actions: tuple[Action, ...]) -> tuple[Action, ...]:
        receives = [own for own in actions if isinstance(own, ReceiveForward | ReceiveBackward)]
        return *receives, *(own for own in actions if not isinstance(own, ReceiveForward | ReceiveBackward))

    return replace(program, ranks=tuple(map(early, program.ranks)))


@pytest.mark.parametrize("schedule", ["zb-v", "gpipe", "zb-1p"])
def test_a_v_with_early_receives(schedule: str) -> None:
    """Forward tensors one way and gradients of the other arm share a directed edge: both wait there at once."""
    program = _with_early_receives(build_program(schedule, place("v", 2, 4), MICROBATCHES))
    assert_equals_whole(run_step(executors_of(program)))


def test_pytorchs_dry_run_takes_early_receives_for_a_deadlock() -> None:
    """Of one and the same order it accepts its own receives, which come after their sends, and none before."""
    program = build_program("zb-v", 2, MICROBATCHES)
    where = program.stage_rank.__getitem__
    computes = _their_actions(program.compute_order())
    theirs._simulate_comms_compute(theirs._add_send_recv(computes, where, program.stages), where, program.stages)
    early = _their_actions(_with_early_receives(program).ranks)
    # It means to print where it got stuck, and where nothing at all could happen fails at that.
    with pytest.raises((ValueError, IndexError)):
        theirs._simulate_comms_compute(early, where, program.stages)


def _their_actions(ranks: Sequence[Sequence[Action]]) -> dict[int, list[Any]]:
    """Our actions in PyTorch's words, without those that it has no word for."""
    ours = [[action_text(own) for own in actions] for actions in ranks]
    kept = [[token for token in own if not any(word in token for word in ("RELEASE", "NORM", "STEP"))] for own in ours]
    return {rank: [theirs._Action.from_str(token) for token in own] for rank, own in enumerate(kept)}


# ------------------------------------------------- a sequence length that changes between steps


@pytest.mark.parametrize("schedule", ["1f1b", "zb-v"])
def test_another_length_in_every_step(schedule: str) -> None:
    executors = executors_of(build_program(schedule, 2, MICROBATCHES))
    counts = []
    for length in (16, 9, 33, 9, 16):
        ran = run_step(executors, shape=(2, length))
        counts.append([own.pool.made for own in executors])
        boundary = {buffer.shape for own in executors for buffer in own.pool._free}
        assert boundary == {(2, length, TINY_LLAMA["hidden_size"])}
        if len(counts) == 1:
            assert_equals_whole(ran, (2, length))
    assert counts == [counts[0]] * 5, "buffers of other lengths were kept"


def test_weights_are_those_of_one_process_whatever_the_lengths() -> None:
    split, whole = (executors_of(build_program("1f1b", ranks, MICROBATCHES)) for ranks in (2, 1))
    for step, length in enumerate((16, 24, 8)):
        assert run_step(split, step, (2, length)).losses == run_step(whole, step, (2, length)).losses
    weights = split[0].optimizer.parameters | split[1].optimizer.parameters
    assert all(torch.equal(weights[name], own) for name, own in whole[0].optimizer.parameters.items())


def test_pytorch_keeps_the_first_steps_buffers(server: ForkServer, tmp_path: Path) -> None:
    group = server.start(
        "torch", "tests.execute.torch_ranks:run", 2, {"rendezvous": str(tmp_path / "meet"), "lengths": [8, 6]}
    )
    done = []
    with pytest.raises(FaultError, match=r"tensor a \(8\) must match the size of tensor b \(6\)"):
        done.extend(item for item in group.messages() if item is not None)
    assert all(message["length"] == 8 for _, message in done)


# ------------------------------------------------- stage counts that differ by rank


@pytest.mark.parametrize("schedule", ["interleaved", "gpipe", "zb-1p"])
@pytest.mark.parametrize(("ranks", "stages"), [(2, 3), (3, 4)])
def test_one_rank_has_a_stage_more(schedule: str, ranks: int, stages: int) -> None:
    program = build_program(schedule, place("loop", ranks, stages), MICROBATCHES)
    executors = executors_of(program)
    assert len({len(own.runners) for own in executors}) == 2
    assert_equals_whole(run_step(executors))


@pytest.mark.parametrize(("own_stages", "error"), [(2, KeyError), (1, AssertionError)])
def test_pytorch_takes_every_rank_to_have_as_many_stages(own_stages: int, error: type[Exception]) -> None:
    stages = [mock.Mock(group_rank=2 - own_stages, group_size=2, num_stages=3) for _ in range(own_stages)]
    with pytest.raises(error):
        theirs.ScheduleInterleaved1F1B(stages, MICROBATCHES)
