"""PyTorch's own pipelining on the same work: the same stages' layers, optimizer, clipping and process group."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.pipelining.schedules import _PipelineSchedule, _PipelineScheduleRuntime
from transformers.loss.loss_utils import ForCausalLMLoss

from benchmarks.peer_job import LEARNING_RATE, SEED, Work
from evenflow.models import Stage, build_stage, draw_weights
from evenflow.program import Compute, order_csv
from evenflow.runtime import Optimizer, OptimizerSettings


class _Module(nn.Module):
    """A stage as PyTorch's schedules want it: the last one returns logits, and the loss is taken outside."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self._logits: list[Tensor] = []
        if stage.is_last:
            stage.model.get_output_embeddings().register_forward_hook(lambda *call: self._logits.append(call[-1]))

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.stage(hidden)  # without labels the last stage has no loss to return
        return self._logits.pop() if self.stage.is_last else output


class TorchPeer:
    """One rank of torch.distributed.pipelining.

    Args:
        work: the job.
        layers: the layers of every stage.
        own: the stages of this rank.
        runtime: run the plan's own order of compute actions; else PyTorch's `Schedule1F1B`.
    """

    def __init__(self, work: Work, layers: Sequence[Sequence[int]], own: Sequence[int], runtime: bool) -> None:
        self.work = work
        stages = [build_stage(work.config, layers[number]) for number in own]
        parameters: dict[str, nn.Parameter] = {}
        for stage in stages:
            draw_weights(stage, SEED)
            parameters.update(stage.named_model_parameters())
        self.is_first = any(stage.is_first for stage in stages)
        self.is_last = any(stage.is_last for stage in stages)
        pipeline = [
            PipelineStage(_Module(stage), number, len(layers), torch.device("cpu"))
            for number, stage in zip(own, stages, strict=True)
        ]
        vocab_size = work.config.vocab_size

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            value: Tensor = ForCausalLMLoss(logits, labels, vocab_size)
            return value

        self.schedule: _PipelineSchedule
        if runtime:
            self.schedule = _PipelineScheduleRuntime(pipeline, work.microbatches, loss_fn=loss)
            _load(self.schedule, work)
        else:
            self.schedule = Schedule1F1B(pipeline[0], work.microbatches, loss_fn=loss)
        self.optimizer = Optimizer(parameters, stages[0].anatomy.parameters, OptimizerSettings())

    @classmethod
    def equal_layers(cls, work: Work) -> Self:
        """1F1B, the same number of layers on every rank."""
        return cls(work, work.equal_split, [work.rank], runtime=False)

    @classmethod
    def same_split(cls, work: Work) -> Self:
        """The plan's split and schedule: PyTorch's own class for 1F1B, else the plan's order in its runtime."""
        own = [stage for stage, rank in enumerate(work.program.stage_rank) if rank == work.rank]
        return cls(work, [stage.layers for stage in work.plan.stages], own, runtime=work.plan.schedule != "1f1b")

    def run_step(self) -> float | None:
        """One step; the loss is known where the last stage is."""
        losses: list[Tensor] = []
        inputs = (self.work.ids,) if self.is_first else ()
        if self.is_last:
            self.schedule.step(*inputs, target=self.work.ids, losses=losses, return_outputs=False)
        else:
            self.schedule.step(*inputs, return_outputs=False)
        norms = self.optimizer.gradient_norms()
        self.work.transport.sum(norms)
        self.optimizer.step(norms, LEARNING_RATE)
        return sum(float(loss.detach()) for loss in losses) / len(losses) if self.is_last else None


def _load(schedule: _PipelineScheduleRuntime, work: Work) -> None:
    """Hand the plan's order over as a file, which is how PyTorch takes one."""
    order = tuple(tuple(action for action in actions if isinstance(action, Compute)) for actions in work.program.ranks)
    with tempfile.TemporaryDirectory(prefix="evenflow-") as folder:
        path = Path(folder) / "order.csv"
        path.write_text(order_csv(order))
        schedule._load_csv(str(path), format="compute_only")
