"""Interleaved 1F1B: several stages on each rank, so that a pipeline fills and drains in smaller pieces.

Two ranks, four stages (rank 0: 0 and 2, rank 1: 1 and 3), four microbatches; a stage's number stands before F or B:

    rank 0 | 0F0 0F1 2F0 2F1 0F2 . . 2B0 0F3 2B1 2F2 0B0 2F3 0B1 2B2 2B3 0B2 0B3
    rank 1 |     1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3

Microbatches go through a rank's stages in groups: all of a group through the first, then through the next.
Idle with equal stages is that of 1F1B divided by the stages of a rank, where groups are of p microbatches
(Narayanan et al. 2021, arXiv:2104.04473, section 2.2); the paper asks that p divides m. Here m microbatches make
m // p groups as equal as they can be, the larger ones first, so any m will do, as will any number of stages
in loop placement, or in V.
"""

from __future__ import annotations

from evenflow.program.actions import Backward, Compute, Forward, Order
from evenflow.program.schedules.groups import groups_of
from evenflow.program.work import Work


def interleaved(work: Work) -> Order:
    """The compute order of each rank."""
    groups = groups_of(work.microbatches, work.ranks)
    return tuple(_rank(stages, work.stages, groups) for stages in work.rank_stages)


def _rank(held: tuple[int, ...], stages: int, groups: tuple[range, ...]) -> tuple[Compute, ...]:
    forwards = [Forward(stage, k) for group in groups for stage in held for k in group]
    backwards = [Backward(stage, k) for group in groups for stage in reversed(held) for k in group]
    # The first group must be through all of this rank's stages but the last before anything comes back. From
    # there on one more forward is needed for each stage between that one and the model's end, and one for each
    # on the way back.
    warm_up = (len(held) - 1) * len(groups[0]) + 2 * (stages - 1 - held[-1])
    warm_up = min(warm_up + 1, len(forwards))
    order: list[Compute] = list(forwards[:warm_up])
    for at, backward in enumerate(backwards):
        order.append(backward)
        order += forwards[warm_up + at : warm_up + at + 1]
    return tuple(order)
