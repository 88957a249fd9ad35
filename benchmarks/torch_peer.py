"""PyTorch's own pipelining on the same work: the same stages' layers, optimizer, clipping and process group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from transformers import PretrainedConfig
from transformers.loss.loss_utils import ForCausalLMLoss

from evenflow.models import Stage, build_stage, draw_weights
from evenflow.runtime import Optimizer, OptimizerSettings, Transport


class _Module(nn.Module):
    """A stage as PyTorch's schedules want it: the last one returns logits, and the loss is taken outside."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.stage.is_last:
            output: Tensor = self.stage(hidden)
            return output
        logits: Tensor = self.stage.model(inputs_embeds=hidden, use_cache=False).logits
        return logits


class TorchPeer:
    """One rank of torch.distributed.pipelining's 1F1B."""

    def __init__(
        self, config: PretrainedConfig, split: Sequence[Sequence[int]], rank: int, microbatches: int, seed: int
    ) -> None:
        stage = build_stage(config, split[rank])
        draw_weights(stage, seed)
        vocab_size = config.vocab_size

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            value: Tensor = ForCausalLMLoss(logits, labels, vocab_size)
            return value

        self.is_first, self.is_last = rank == 0, rank == len(split) - 1
        pipeline = PipelineStage(_Module(stage), rank, len(split), torch.device("cpu"))
        self.schedule = Schedule1F1B(pipeline, microbatches, loss_fn=loss)
        self.optimizer = Optimizer(stage.named_model_parameters(), stage.anatomy.parameters, OptimizerSettings())
        self.microbatches = microbatches

    def run_step(self, ids: Tensor, transport: Transport, learning_rate: float) -> float:
        """One step on all microbatches [microbatches x batch, seq]; returns the loss (zero elsewhere than last)."""
        losses: list[Tensor] = []
        if self.is_first:
            self.schedule.step(ids, return_outputs=False)
        elif self.is_last:
            self.schedule.step(target=ids, losses=losses, return_outputs=False)
        else:
            self.schedule.step(return_outputs=False)
        norms = self.optimizer.gradient_norms()
        transport.sum(norms)
        self.optimizer.step(norms, learning_rate)
        return sum(float(loss.detach()) for loss in losses) / self.microbatches
