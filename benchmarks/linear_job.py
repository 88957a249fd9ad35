"""The memory job: linear layers whose activations outweigh nothing but buffers, so that what a pipeline holds shows.

Two ranks with two linear layers of 2048 x 2048 each; a microbatch is 512 rows, so that 4 MiB cross the cut and come
back; 128 microbatches. Its input is one column, which the first stage repeats: else the batch itself would be the most
of the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from benchmarks.peer_job import LEARNING_RATE, SEED
from evenflow.execute import Executor
from evenflow.models import Stage
from evenflow.program import build_program, verify
from evenflow.runtime import Optimizer, OptimizerSettings, Transport

RANKS = 2


@dataclass(frozen=True, slots=True)
class LinearJob:
    """Sizes: rows of a microbatch, features of a layer, layers of each rank, microbatches."""

    rows: int = 512
    features: int = 2048
    layers: int = 2
    microbatches: int = 128


class LinearStage(nn.Module):
    """One rank's layers, with what the executor asks of a stage."""

    def __init__(self, job: LinearJob, rank: int) -> None:
        super().__init__()
        torch.manual_seed(SEED + rank)
        self.features = job.features
        self.is_first, self.is_last = rank == 0, rank == RANKS - 1
        self.names = [f"{number}.weight" for number in range(RANKS * job.layers)]
        own = self.names[rank * job.layers : (rank + 1) * job.layers]
        self.linears = nn.ModuleList(nn.Linear(job.features, job.features, bias=False) for _ in own)
        self.parameters_by_name = dict(zip(own, self.parameters(), strict=True))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device("cpu")

    def forward(self, hidden: Tensor, labels: Tensor | None = None, *_: object) -> Tensor:
        """Hidden states [rows, features] of a column [rows] or of hidden states; with labels, their mean square []."""
        if self.is_first:
            hidden = hidden.unsqueeze(-1).expand(-1, self.features).contiguous()
        for linear in self.linears:
            hidden = linear(hidden)
        return hidden if labels is None else hidden.square().mean()


def step_input(job: LinearJob) -> Tensor:
    """A step's column [microbatches x rows], the same on both ranks."""
    return torch.linspace(-1, 1, job.microbatches * job.rows)


class EvenflowLinear:
    """The executor on the memory job."""

    def __init__(self, job: LinearJob, rank: int, rows: Tensor, transport: Transport) -> None:
        stage = LinearStage(job, rank)
        program = build_program("1f1b", RANKS, job.microbatches)
        verify(program)
        self.optimizer = Optimizer(stage.parameters_by_name, stage.names, OptimizerSettings())
        boundary = (job.rows, job.features)
        stages = {rank: cast(Stage, stage)}
        self.executor = Executor(program, rank, stages, transport, self.optimizer, boundary)
        self.microbatches = rows.split(job.rows)

    def run_step(self) -> float | None:
        """Run the program once."""
        return self.executor.run_step(self.microbatches.__getitem__, LEARNING_RATE).loss


class TorchLinear:
    """torch.distributed.pipelining's 1F1B on the memory job."""

    def __init__(self, job: LinearJob, rank: int, rows: Tensor, transport: Transport) -> None:
        stage = LinearStage(job, rank)
        self.transport = transport
        self.optimizer = Optimizer(stage.parameters_by_name, stage.names, OptimizerSettings())
        pipeline = PipelineStage(stage, rank, RANKS, torch.device("cpu"))
        self.schedule = Schedule1F1B(pipeline, job.microbatches, loss_fn=lambda output, _: output.square().mean())
        self.input = rows
        self.is_first = stage.is_first
        self.target = rows[:: job.rows]  # a chunk for each microbatch, which nobody reads

    def run_step(self) -> float | None:
        """One step; the loss is known on the last rank."""
        losses: list[Tensor] = []
        if self.is_first:
            self.schedule.step(self.input, return_outputs=False)
        else:
            self.schedule.step(target=self.target, losses=losses, return_outputs=False)
        norms = self.optimizer.gradient_norms()
        self.transport.sum(norms)
        self.optimizer.step(norms, LEARNING_RATE)
        return None if self.is_first else sum(float(loss.detach()) for loss in losses) / len(losses)
