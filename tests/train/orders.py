"""Says in a process of its own which sequences a step trains on."""

from __future__ import annotations

from typing import Any

from evenflow.launch import Channel
from evenflow.train.sampler import sample_ids


def run(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Send the sequences of the step that is asked for."""
    channel.send({"kind": "order", "ids": sample_ids(*payload["asked"])})
