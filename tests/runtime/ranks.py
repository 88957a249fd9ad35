"""What the forked ranks of the transport tests run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evenflow.launch import Channel
from evenflow.runtime import EdgeGroupTransport, connect, edges_of

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
