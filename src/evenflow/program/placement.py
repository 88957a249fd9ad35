"""Placements: which rank holds which stage.

one    0 1 2 3            stage s on rank s
loop   0 1 2 3 0 1 2 3    round and round (Narayanan et al. 2021, arXiv:2104.04473, section 2.2)
v      0 1 2 3 3 2 1 0    back and forth: the first and the last stage share rank 0
                          (Qi et al. 2024, arXiv:2405.15362, section 3.1)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Literal

from evenflow.errors import ProgramError

Placement = Literal["one", "loop", "v"]


def place(placement: Placement, ranks: int, stages: int) -> tuple[int, ...]:
    """The rank of each stage; `stages` need be no multiple of `ranks`, then some ranks hold one stage more."""
    if placement == "v":
        return tuple(_zigzag(stage, ranks) for stage in range(stages))
    return tuple(stage % ranks for stage in range(stages))


def placement_of(stage_rank: tuple[int, ...]) -> Placement | None:
    """Which placement this is; None for any other."""
    ranks, stages = max(stage_rank) + 1, len(stage_rank)
    if stage_rank == tuple(range(ranks)):
        return "one"
    placements: tuple[Placement, ...] = ("loop", "v")
    return next((name for name in placements if stage_rank == place(name, ranks, stages)), None)


def stages_of(stage_rank: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The stages of one rank, in order."""
    return tuple(stage for stage, owner in enumerate(stage_rank) if owner == rank)


def check_stages(stage_rank: Sequence[int], ranks: int, tied: Sequence[Sequence[int]]) -> None:
    """Stages must be on ranks that there are, and tied stages must be some of them, each in one group.

    Raises:
        ProgramError: one is not.
    """
    stages = len(stage_rank)
    for stage, rank in enumerate(stage_rank):
        if not 0 <= rank < ranks:
            raise ProgramError(f"stage {stage} is on rank {rank}, but ranks run from 0 to {ranks - 1}")
    found: set[int] = set()
    for stage in chain.from_iterable(tied):
        if not 0 <= stage < stages:
            raise ProgramError(f"stage {stage} is tied, but stages run from 0 to {stages - 1}")
        if stage in found:
            raise ProgramError(f"stage {stage} is tied twice; a stage can be in one group")
        found.add(stage)


def _zigzag(stage: int, ranks: int) -> int:
    turn, step = divmod(stage, ranks)
    return step if turn % 2 == 0 else ranks - 1 - step
