"""DeepSpeed's PipelineModule on the same work: the same Hugging Face modules, optimizer and clipping.

What it needs to run on CPUs: gloo, a layer a `LayerSpec` that takes and returns one tensor, and a plain AdamW. Where
there was a choice it was made for its good: rotary tables are computed once, not in every layer and microbatch.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.loss.loss_utils import ForCausalLMLoss

from benchmarks.peer_job import LEARNING_RATE, SEED, Work
from evenflow.models import build_stage, draw_weights
from evenflow.runtime import OptimizerSettings


class _Layer(nn.Module):
    """One layer of a Llama, with the same first weights as everywhere else."""

    def __init__(self, config: PretrainedConfig, layer: int) -> None:
        super().__init__()
        stage = build_stage(config, [layer])
        draw_weights(stage, SEED)
        for gate in stage._gate.handles:  # out of its stage a block is handed its input, and ends no forward
            gate.remove()
        self.parts = nn.ModuleList(stage.model.get_submodule(path) for path in stage.anatomy.layers[layer])
        self.is_block = not stage.is_first and not stage.is_last
        # In a list, so that its tables are no part of the module: every rank has its own.
        self.rotary = [stage.model.get_submodule("model.rotary_emb")]
        self.tables: tuple[Tensor, Tensor] | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self.is_block:
            if self.tables is None:
                positions = torch.arange(hidden.shape[1]).unsqueeze(0)
                self.tables = self.rotary[0](hidden, position_ids=positions)
            output: Tensor = self.parts[0](hidden, attention_mask=None, position_embeddings=self.tables)
            return output
        for part in self.parts:
            hidden = part(hidden)
        return hidden


class DeepSpeedPeer:
    """One rank of DeepSpeed's pipeline engine.

    Args:
        work: the job.
        method: how layers are split: `uniform` (counts) or `parameters`.
    """

    def __init__(self, work: Work, method: str) -> None:
        os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK=str(work.rank))
        import deepspeed
        from deepspeed.pipe import LayerSpec, PipelineModule

        deepspeed.logger.setLevel("WARNING")
        deepspeed.init_distributed(dist_backend="gloo")  # it takes up the process group that is there

        vocab_size = work.config.vocab_size

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            value: Tensor = ForCausalLMLoss(logits, labels, vocab_size)
            return value

        self.work = work
        self.net = PipelineModule(
            [LayerSpec(_Layer, work.config, layer) for layer in range(len(work.plan.layers))],
            num_stages=len(work.plan.ranks),
            loss_fn=loss,
            partition_method=method,
        )
        for parameter in self.net.parameters():
            # Its clipping leaves the gradients of all ranks but the first out of the norm, unless they say this.
            parameter.model_parallel = True
        self.engine, *_ = deepspeed.initialize(
            model=self.net, optimizer=_adamw(self.net), config=_settings(work.plan.micro_batch_size, work.microbatches)
        )

    @property
    def split(self) -> list[list[int]]:
        """The layers of each rank."""
        parts = self.net.parts
        return [list(range(first, end)) for first, end in pairwise(parts)]

    def run_step(self) -> float | None:
        """One step; it broadcasts the loss to all ranks."""
        microbatches = [self.work.tokens(index) for index in range(self.work.microbatches)]
        return float(self.engine.train_batch(iter([(ids, ids) for ids in microbatches])))


def _settings(micro_batch_size: int, microbatches: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": microbatches,
        "gradient_clipping": OptimizerSettings().clip_norm,
        "steps_per_print": 10**9,
    }


def _adamw(net: nn.Module) -> torch.optim.Optimizer:
    """AdamW with the settings and groups that evenflow's `Optimizer` has."""
    settings = OptimizerSettings()
    parameters = list(net.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [own for own in parameters if own.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [own for own in parameters if own.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=LEARNING_RATE,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
