"""What the forked ranks of the parity tests run: some steps of a split model on made-up tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from evenflow.execute import Executor
from evenflow.launch import Channel
from evenflow.models import build_stage, draw_weights
from evenflow.program import build_program, verify
from evenflow.runtime import Optimizer, OptimizerSettings, connect


def tokens_of(step: int, microbatch: int, batch: int, seq: int, vocabulary: int) -> torch.Tensor:
    """Token ids [batch, seq] that depend on step and microbatch alone."""
    generator = torch.Generator().manual_seed(1_000 * step + microbatch)
    return torch.randint(0, vocabulary, (batch, seq), generator=generator)


def run(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Train `steps` steps; save weights and, of the first step, gradients before clipping."""
    torch.set_num_threads(1)
    split: list[list[int]] = payload["split"]
    config = AutoConfig.for_model(payload["config"].pop("model_type"), **payload["config"])
    folder = Path(payload["folder"])
    transport = connect(rank, len(split), folder / "rendezvous", 60)
    stage = build_stage(config, split[rank])
    draw_weights(stage, payload["seed"])
    program = build_program(payload["schedule"], len(split), payload["microbatches"])
    verify(program)
    optimizer = GradientKeeper(stage.named_model_parameters(), stage.anatomy.parameters, OptimizerSettings())
    batch, seq = payload["shape"]
    executor = Executor(program, rank, {rank: stage}, transport, optimizer, (batch, seq, config.hidden_size))
    results = []
    for step in range(1, payload["steps"] + 1):
        result = executor.run_step(
            lambda microbatch, step=step: tokens_of(step, microbatch, batch, seq, config.vocab_size), 1e-3
        )
        results.append([result.loss, result.grad_norm])
    transport.close()
    save_file(optimizer.first, folder / f"gradients-{rank}.safetensors")
    weights = {name: parameter.detach() for name, parameter in stage.named_model_parameters().items()}
    save_file(weights, folder / f"weights-{rank}.safetensors")
    channel.send({"kind": "result", "steps": results, "buffers": executor.pool.made})


class GradientKeeper(Optimizer):
    """Keeps the first step's gradients as they are before clipping."""

    first: dict[str, torch.Tensor] | None = None

    def gradient_norms(self) -> torch.Tensor:
        """Copy the gradients, then go on as usual."""
        if self.first is None:
            self.first = {
                name: parameter.grad.clone()
                for name, parameter in self.parameters.items()
                if parameter.grad is not None
            }
        return super().gradient_norms()
