"""What the forked ranks of the rehearsal tests run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evenflow.files import load_plan
from evenflow.launch import Channel
from evenflow.plan import Coordinates
from evenflow.program import verify_plan
from evenflow.rehearse.ranks import RandomTokens
from evenflow.runtime import LiveBytes, MadeUpTransport, local, made_up_mesh
from evenflow.train.ranks import assemble


def counts_its_bytes(number: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Build a rank as a rehearsal does, and count the bytes of tensors that its second step holds at most."""
    torch.set_num_threads(1)
    plan = load_plan(Path(payload["plan"]))
    tied = [[plan.stage_rank[stage] for stage in group] for group in plan.tied]
    mesh = made_up_mesh(plan.axes, plan.axes.process(Coordinates(payload["rank"])), tied)
    with LiveBytes() as live:
        executor, held, *_ = assemble(payload, plan, verify_plan(plan), MadeUpTransport(), mesh, torch.device("cpu"))
        live.count([local(tensor) for stage in held for tensor in (*stage.parameters(), *stage.buffers())])
        tokens = RandomTokens(payload, plan, torch.device("cpu"))
        executor.run_step(tokens, predicted=tokens.predicted)
        live.mark()
        result = executor.run_step(tokens, predicted=tokens.predicted)
        peak = live.peak
    shapes = {name: list(own.shape) for stage in held for name, own in stage.named_model_parameters().items()}
    spans = len(result.spans)
    channel.send({"kind": "result", "peak": peak, "shapes": shapes, "spans": spans})
