"""Each rank's step as the same few parts everywhere: busy, optimizer, and idle by cause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from evenflow.timeline import Cause, Timeline, waits

CAUSES: tuple[Cause, ...] = get_args(Cause)
PARTS = ("busy", "optimizer", *CAUSES)


@dataclass(frozen=True, slots=True)
class IdleRow:
    """One rank: the seconds of each of `PARTS`, its step's wall time, and whom it waited for most."""

    parts: tuple[float, ...]
    wall_s: float
    peer: str


def idle_rows(timeline: Timeline) -> tuple[IdleRow, ...]:
    """A row for each rank."""
    return tuple(_row(timeline, rank) for rank in range(len(timeline.ranks)))


def _row(timeline: Timeline, rank: int) -> IdleRow:
    own = timeline.ranks[rank]
    causes = dict.fromkeys(CAUSES, 0.0)
    peers: dict[int, float] = {}
    for wait in waits(timeline, rank):
        causes[wait.cause] += wait.seconds
        if wait.peer is not None:
            peers[wait.peer] = peers.get(wait.peer, 0.0) + wait.seconds
    peer = f"rank {max(peers, key=peers.__getitem__)}" if peers else ""
    return IdleRow((own.busy_s, own.optimizer_s, *causes.values()), own.wall_s, peer)
