"""Who takes part in the peers benchmark: each trains the same job, one step at a time, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Protocol

from torch import nn

from benchmarks.peer_job import LEARNING_RATE, SEED, Work
from evenflow.execute import Executor
from evenflow.models import Stage, build_stage, draw_weights
from evenflow.runtime import Optimizer, OptimizerSettings

EVENFLOW = "evenflow"


class Contestant(Protocol):
    """One trainer on one rank."""

    def run_step(self) -> float | None:
        """Train one step on all microbatches.

        Returns:
            The mean loss over the microbatches; None on a rank that does not know it.
        """


class EvenflowPeer:
    """The plan's own split and program, run by the executor."""

    def __init__(self, work: Work) -> None:
        self.work = work
        stages = {number: _stage(work, work.plan.stages[number].layers) for number in _stages_of(work)}
        parameters: dict[str, nn.Parameter] = {}
        for stage in stages.values():
            parameters.update(stage.named_model_parameters())
        names = next(iter(stages.values())).anatomy.parameters
        boundary = (work.plan.micro_batch_size, work.plan.seq_length, work.config.hidden_size)
        self.optimizer = Optimizer(parameters, names, OptimizerSettings())
        self.executor = Executor(work.program, work.rank, stages, work.transport, self.optimizer, boundary)

    def run_step(self) -> float | None:
        """Run the program once."""
        return self.executor.run_step(self.work.tokens, LEARNING_RATE).loss


class OneProcess:
    """The whole model in rank 0 with plain autograd; the other ranks, and their cores, have nothing to do."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.stage: Stage | None = None
        if work.rank == 0:
            self.stage = _stage(work, range(len(work.plan.layers)))
            parameters = self.stage.named_model_parameters()
            self.optimizer = Optimizer(parameters, self.stage.anatomy.parameters, OptimizerSettings())

    def run_step(self) -> float | None:
        """Forward and backward of each microbatch in turn, then the update."""
        if self.stage is None:
            return None
        total = 0.0
        for index in range(self.work.microbatches):
            ids = self.work.tokens(index)
            loss = self.stage(ids, ids)
            (loss / self.work.microbatches).backward()
            total += float(loss.detach())
        self.optimizer.step(self.optimizer.gradient_norms(), LEARNING_RATE)
        return total / self.work.microbatches


def _stage(work: Work, layers: range | tuple[int, ...] | list[int]) -> Stage:
    stage = build_stage(work.config, layers)
    draw_weights(stage, SEED)
    return stage


def _stages_of(work: Work) -> list[int]:
    return [stage for stage, rank in enumerate(work.program.stage_rank) if rank == work.rank]


def _torch_equal_layers(work: Work) -> Contestant:
    from benchmarks.torch_peer import TorchPeer

    return TorchPeer.equal_layers(work)


def _torch_same_split(work: Work) -> Contestant:
    from benchmarks.torch_peer import TorchPeer

    return TorchPeer.same_split(work)


def _deepspeed_uniform(work: Work) -> Contestant:
    from benchmarks.deepspeed_peer import DeepSpeedPeer

    return DeepSpeedPeer(work, "uniform")


def _deepspeed_parameters(work: Work) -> Contestant:
    from benchmarks.deepspeed_peer import DeepSpeedPeer

    return DeepSpeedPeer(work, "parameters")


# Imports of other trainers wait until one of them takes part: DeepSpeed is not everywhere.
CONTESTANTS: dict[str, Callable[[Work], Contestant]] = {
    EVENFLOW: EvenflowPeer,
    "one_process": OneProcess,
    "torch_equal_layers": _torch_equal_layers,
    "torch_same_split": _torch_same_split,
    "deepspeed_uniform": _deepspeed_uniform,
    "deepspeed_parameters": _deepspeed_parameters,
}

OPTIONAL = ("deepspeed_uniform", "deepspeed_parameters")


def missing(name: str) -> str | None:
    """Why a contestant cannot take part here; None where it can."""
    if name in OPTIONAL and find_spec("deepspeed") is None:
        return "deepspeed is not installed; `make bench` installs it, as does pip install '.[bench]'"
    return None
