"""What the forked ranks of the transport tests run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from evenflow.launch import Channel
from evenflow.plan import Axes
from evenflow.runtime import EdgeGroupTransport, connect, edges_of, make_mesh, reductions

MESSAGES = 4


def around(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Send numbered tensors to every neighbour of a ring, the receives of each edge posted one by one, tags at odds."""
    ranks: int = payload["ranks"]
    edges = edges_of([*range(ranks), 0])
    host = connect(rank, ranks, Path(payload["rendezvous"]), 30)
    transport = EdgeGroupTransport(host, rank, edges, "gloo", torch.device("cpu"), 30)
    received, transfers = {}, []
    for sender, receiver in edges:
        for number in range(MESSAGES):
            if rank == sender:
                tensor = torch.tensor([100.0 * sender + 10 * receiver + number])
                transfers.append(transport.send(tensor, receiver, tag=number))
            elif rank == receiver:
                buffer = torch.zeros(1)
                received[f"{sender}-{number}"] = buffer
                transfers.append(transport.receive(buffer, sender, tag=MESSAGES - number))
    for transfer in reversed(transfers):
        transfer.wait()
    total = torch.tensor([float(rank)])
    transport.sum(total)
    transport.close()
    channel.send(
        {
            "kind": "result",
            "received": {name: float(buffer) for name, buffer in received.items()},
            "sum": float(total),
        }
    )


def waits_for_a_silent_peer(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Rank 0 sums over an axis whose group waits for 2 s; rank 1 never does, and looks whether 0 gave up in time."""
    transport = connect(rank, 2, Path(payload["rendezvous"]), 60)
    mesh = make_mesh(Axes(**{payload["axis"]: 2}), rank, (), timeout_s=2)
    group = mesh.dp if payload["axis"] == "dp" else mesh.tp.get_group()
    gave_up = Path(payload["gave_up"])
    if rank == 0:
        try:
            dist.all_reduce(torch.zeros(1), group=group)
        except RuntimeError:
            gave_up.touch()
    end = time.monotonic() + 40
    while not gave_up.exists() and time.monotonic() < end:
        time.sleep(0.1)
    channel.send({"kind": "result", "heard": gave_up.exists()})
    transport.close()


def adds_in_messages(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Add gradients, one of which nobody has and one of which rank 0 alone has, in messages of a few bytes each."""
    reductions.MESSAGE_BYTES = payload["message_bytes"]
    transport = connect(rank, 2, Path(payload["rendezvous"]), 30)
    mesh = make_mesh(Axes(dp=2), rank, (), timeout_s=30)
    assert mesh.dp is not None
    shapes = {"long": (9,), "matrix": (2, 3), "nobody": (4,), "mine": (2,), "last": (1,)}
    parameters = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    buckets = [reductions.Bucket(own, mesh.dp, None, scatters=False) for own in reductions.in_messages(parameters)]
    for number, (name, parameter) in enumerate(parameters.items()):
        if name != "nobody" and (name != "mine" or rank == 0):
            parameter.grad = torch.arange(parameter.numel()).view_as(parameter) + 10.0 * number + 100 * rank
    for bucket in buckets:
        bucket.start()
    left = [name for name, own in parameters.items() if own.grad is not None]
    for bucket in buckets:
        bucket.finish()
    sums = {name: None if own.grad is None else own.grad.flatten().tolist() for name, own in parameters.items()}
    channel.send({"kind": "result", "messages": len(buckets), "left": left, "sums": sums})
    transport.close()


def shares_in_messages(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Add gradients, of which each of several ranks is to have its share, in messages of a few bytes each."""
    reductions.MESSAGE_BYTES = payload["message_bytes"]
    transport = connect(rank, payload["ranks"], Path(payload["rendezvous"]), 30)
    mesh = make_mesh(Axes(dp=payload["ranks"]), rank, (), timeout_s=30)
    assert mesh.dp is not None
    shapes = {"long": (9,), "matrix": (2, 3), "nobody": (4,), "last": (1,)}
    parameters = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    buckets = [reductions.Bucket(own, mesh.dp, mesh.dp, scatters=True) for own in reductions.in_messages(parameters)]
    for number, (name, parameter) in enumerate(parameters.items()):
        if name != "nobody":
            parameter.grad = torch.arange(parameter.numel()).view_as(parameter) + 100.0 * number + 1000 * rank
    for bucket in buckets:
        bucket.start()
    left = [name for name, own in parameters.items() if own.grad is not None]
    for bucket in buckets:
        bucket.finish()
    pieces = {
        name: None if own.grad is None else own.grad.flatten().tolist()
        for bucket in buckets
        for name, own in bucket.updated.items()
    }
    channel.send({"kind": "result", "messages": len(buckets), "left": left, "pieces": pieces})
    transport.close()
