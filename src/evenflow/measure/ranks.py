"""What each forked rank does to measure: time all layers and links while every other rank does the same."""

from __future__ import annotations

import gc
from dataclasses import asdict
from typing import Any

import torch

from evenflow.launch import Channel
from evenflow.measure.layers import Repeats, rank_clock, time_layers, time_matmul
from evenflow.measure.link import time_adding, time_link, time_sum
from evenflow.models import read_config
from evenflow.plan import Axes
from evenflow.runtime import (
    TORCH_DTYPES,
    carry,
    choose_transport,
    connect,
    make_mesh,
    memory_meter,
    rank_device,
    rank_devices,
    use_device,
)
from evenflow.spec import DTYPE_BYTES, Dtype

_TIMEOUT_S = 300.0


def run(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Time everything and send the seconds of this rank."""
    torch.set_num_threads(payload["threads"])
    ranks: int = payload["ranks"]
    gpus: int = payload["gpus"]
    local_rank = payload["places"][rank][1]
    device = rank_device(local_rank, gpus)
    use_device(device)
    meter = memory_meter(device)
    kind = choose_transport(rank_devices(payload["places"], gpus))
    host = connect(rank, ranks, payload["rendezvous"], _TIMEOUT_S)
    pairs = [edge for first in range(0, ranks - 1, 2) for edge in ((first, first + 1), (first + 1, first))]
    transport = carry(host, kind, rank, pairs, device, _TIMEOUT_S)
    batch, seq, hidden = payload["shape"]
    dtype: Dtype = payload["dtype"]
    axes = Axes(pp=ranks // payload["tp"], tp=payload["tp"])
    mesh = make_mesh(axes, rank, (), _TIMEOUT_S, device, own_gpus=kind == "nccl")
    together = torch.zeros(1)
    clock = rank_clock(payload["threads"], payload["has_own_cores"], device)
    result: dict[str, Any] = {"kind": "result"}

    def meet() -> None:
        if not gpus:
            transport.sum(together)

    # Of ranks that share a GPU the first times its layers, alone: what they take of it together is the simulator's.
    # Those that share out a layer have to time it together.
    if not gpus or local_rank - local_rank % payload["tp"] < gpus:
        channel.doing("timing layers")
        layers, *stage = time_layers(
            read_config(payload["model"]),
            payload["signatures"],
            (batch, seq, hidden),
            Repeats(),
            mesh,
            clock,
            meet,
            device,
            dtype,
        )
        result |= {"layers": [asdict(own) for own in layers], "stage": stage}
        meet()
        result["peak_flops"] = time_matmul(clock, device, dtype=TORCH_DTYPES[dtype])
    channel.doing("timing links")
    transport.sum(together)
    link = time_link(rank, ranks, transport, DTYPE_BYTES[dtype] * batch * seq * hidden, device)
    result |= {"link": [link.latency_s, 1 / link.bytes_per_s]}
    result["reduce_s"] = time_sum(transport, payload["parameters"])
    if ranks > 1:
        adding = time_adding(ranks, transport, payload["sum_bytes"])
        result |= {"adding": [adding.latency_s, adding.bytes_per_s]}
    # All that a rank ever starts has started by now, and no tensor is left.
    gc.collect()
    result["process_bytes"] = max(meter.held_bytes(), 0)
    channel.send(result)
    transport.close()
