"""Which cores each rank is pinned to, so that no rank's threads ever wait for another's."""

from __future__ import annotations

import os

from evenflow.spec.machine import core_ids


def cores_of_ranks(ranks: int, threads: int) -> list[list[int]] | None:
    """Disjoint cores for each rank; None where the system cannot pin or the ranks must share cores."""
    cores = core_ids()
    if not hasattr(os, "sched_setaffinity") or ranks * threads > len(cores):
        return None
    return [list(cores[rank * threads : (rank + 1) * threads]) for rank in range(ranks)]
