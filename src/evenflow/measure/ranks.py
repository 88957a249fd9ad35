"""What each forked rank does to measure: time all layers and links while every other rank does the same."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from evenflow.launch import Channel
from evenflow.measure.layers import Repeats, rank_clock, time_layers, time_matmul
from evenflow.measure.link import time_link, time_sum
from evenflow.models import find_model
from evenflow.runtime import connect

_TIMEOUT_S = 300.0


def run(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Time everything and send the seconds of this rank."""
    torch.set_num_threads(payload["threads"])
    ranks: int = payload["ranks"]
    transport = connect(rank, ranks, Path(payload["rendezvous"]), _TIMEOUT_S)
    batch, seq, hidden = payload["shape"]
    together = torch.zeros(1)
    clock = rank_clock(payload["threads"], payload["has_own_cores"])
    channel.send({"kind": "doing", "what": "timing layers"})
    layers, stage_forward, stage_backward = time_layers(
        find_model(payload["model"]).config,
        payload["signatures"],
        (batch, seq, hidden),
        Repeats(),
        rank,
        clock,
        lambda: transport.sum(together),
    )
    channel.send({"kind": "doing", "what": "timing links"})
    transport.sum(together)
    peak_flops = time_matmul(clock)
    link = time_link(rank, ranks, transport, 4 * batch * seq * hidden)
    reduce_s = time_sum(transport, payload["parameters"])
    channel.send(
        {
            "kind": "result",
            "layers": [asdict(times) for times in layers],
            "stage": [stage_forward, stage_backward],
            "link": [link.latency_s, 1 / link.bytes_per_s],
            "reduce_s": reduce_s,
            "peak_flops": peak_flops,
        }
    )
    transport.close()
