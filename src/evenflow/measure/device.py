"""Measures what a catalogue says of a device: one rank's slice of this machine, with all its ranks busy at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from evenflow.launch import Channel, Launcher, ThisHost
from evenflow.measure.layers import Clock, rank_clock, time_matmul
from evenflow.measure.link import time_link
from evenflow.runtime import carry, choose_transport, connect, rank_device, rank_devices, use_device
from evenflow.spec import Cluster, this_machine
from evenflow.spec.accelerators import Accelerator
from evenflow.spec.gpus import visible_gpus
from evenflow.spec.wires import WIRES

_TIMEOUT_S = 120.0
_COPIED = 1 << 24  # numbers: more than caches hold
_SENT = 1 << 21
_ROUNDS = 8
_NETWORK = "Ethernet 10"  # what is said of a network that one machine cannot measure


def measure_device(
    cluster: Cluster, tick: Callable[[], None] = lambda: None, launcher: Launcher | None = None
) -> Accelerator:
    """The catalogue entry of one of this machine's devices.

    Args:
        cluster: this machine.
        tick: called now and then while the ranks measure; what it raises ends them.
        launcher: where the processes run; by default on this host.
    """
    payload = {
        "ranks": cluster.devices,
        "threads": cluster.threads,
        "gpus": len(visible_gpus()) if cluster.device.is_gpu else 0,
        "has_own_cores": cluster.at_once == cluster.devices,
    }
    results: list[dict[str, Any]] = []
    target = "evenflow.measure.device:run"
    with (launcher or ThisHost()).running("profile", target, cluster.devices, payload, cluster.threads) as group:
        for item in group.messages():
            tick()
            if item is not None:
                results.append(item[1])

    def middle(figure: str) -> float:
        return float(median(own[figure] for own in results if own.get(figure)))

    is_joined = cluster.devices > 1
    machine = this_machine()
    figures = ("half_flops", "single_flops", "memory_bytes_per_s", *(("node_bytes_per_s",) if is_joined else ()))
    network = WIRES[_NETWORK]
    return Accelerator(
        name=re.sub(r"[^A-Za-z0-9]+", "-", machine.processor).strip("-"),
        half_flops=middle("half_flops"),
        eighth_flops=middle("half_flops"),  # nobody timed fp8: as if it were no faster
        single_flops=middle("single_flops"),
        memory_bytes=float(cluster.device.memory_bytes),
        memory_bytes_per_s=middle("memory_bytes_per_s"),
        node_bytes_per_s=middle("node_bytes_per_s") if is_joined else network.bytes_per_s,
        network_bytes_per_s=network.bytes_per_s,
        node_devices=cluster.devices,
        source=f"measured in {cluster.devices} processes of {cluster.threads} threads, torch {torch.__version__}",
        watts=0.0,
        processors=cluster.threads,
        node_wire="between processes",
        network_wire=network.name,
        assumed=("eighth_flops", "network_bytes_per_s", *(() if is_joined else ("node_bytes_per_s",))),
        measured=(*figures, "memory_bytes"),
    )


def run(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Time products, copies and the link to a neighbour on this rank, all ranks at once."""
    torch.set_num_threads(payload["threads"])
    ranks: int = payload["ranks"]
    local_rank = payload["places"][rank][1]
    device = rank_device(local_rank, payload["gpus"])
    use_device(device)
    kind = choose_transport(rank_devices(payload["places"], payload["gpus"]))
    pairs = [edge for first in range(0, ranks - 1, 2) for edge in ((first, first + 1), (first + 1, first))]
    host = connect(rank, ranks, payload["rendezvous"], _TIMEOUT_S)
    transport = carry(host, kind, rank, pairs, device, _TIMEOUT_S)
    clock = rank_clock(payload["threads"], payload["has_own_cores"], device)
    together = torch.zeros(1)
    transport.sum(together)
    result: dict[str, Any] = {"kind": "result", "single_flops": time_matmul(clock, device)}
    transport.sum(together)
    result["half_flops"] = time_matmul(clock, device, size=512, dtype=torch.bfloat16)
    transport.sum(together)
    result["memory_bytes_per_s"] = time_copy(clock, device)
    transport.sum(together)
    link = time_link(rank, ranks, transport, 4 * _SENT, device)
    result["node_bytes_per_s"] = link.bytes_per_s if link.bytes_per_s < float("inf") else 0.0
    channel.send(result)
    transport.close()


def time_copy(clock: Clock, device: torch.device) -> float:
    """Bytes a second that memory reads and writes in a large copy."""
    source, target = torch.ones(_COPIED, device=device), torch.empty(_COPIED, device=device)
    seconds: list[float] = []
    for _ in range(_ROUNDS):
        start = clock()
        target.copy_(source)
        seconds.append(clock() - start)
    return 2 * source.nbytes / min(seconds)
