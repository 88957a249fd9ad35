"""What forked ranks run to show what PyTorch's pipelining does when the sequence length changes between steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from evenflow.launch import Channel
from evenflow.runtime import connect


def run(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """One step of each length with two stages of one linear layer; report the steps that were done."""
    torch.set_num_threads(1)
    transport = connect(rank, 2, Path(payload["rendezvous"]), 30)
    stage = PipelineStage(nn.Linear(4, 4), rank, 2, torch.device("cpu"))
    schedule = Schedule1F1B(stage, 2, loss_fn=lambda output, target: ((output - target) ** 2).mean())
    for length in payload["lengths"]:
        batch = torch.ones(2, length, 4)
        if rank == 0:
            schedule.step(batch)
        else:
            schedule.step(target=batch)
        channel.send({"kind": "stepped", "length": length})
    transport.close()
