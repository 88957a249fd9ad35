"""Each rank's step as the same few parts everywhere: busy, optimizer, and idle by cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from evenflow.timeline import Cause, RankTimeline, Timeline, Wait, waits

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
    return tuple(_row(own, found) for own, found in zip(timeline.ranks, waits(timeline), strict=True))


def _row(own: RankTimeline, found: Sequence[Wait]) -> IdleRow:
    causes = dict.fromkeys(CAUSES, 0.0)
    peers: dict[int, float] = {}
    for wait in found:
        causes[wait.cause] += wait.seconds
        if wait.peer is not None:
            peers[wait.peer] = peers.get(wait.peer, 0.0) + wait.seconds
    peer = f"rank {max(peers, key=peers.__getitem__)}" if peers else ""
    return IdleRow((own.busy_s, own.optimizer_s, *causes.values()), own.wall_s, peer)
