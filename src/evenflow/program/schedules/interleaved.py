"""Interleaved 1F1B: several stages on each rank, so that a pipeline fills and drains in smaller pieces.

Two ranks, four stages (rank 0: 0 and 2, rank 1: 1 and 3), four microbatches; a stage's number stands before F or B:

    rank 0 | 0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 .   2B2 .   2B3 0B2 0B3
    rank 1 |     1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3

Microbatches go through a rank's stages in groups: all of a group through the first, then through the next.
Idle with equal stages is that of 1F1B divided by the stages of a rank, where groups are of p microbatches
(Narayanan et al. 2021, arXiv:2104.04473, section 2.2); the paper asks that p divides m. Here m microbatches make
m // p groups as equal as they can be, the larger ones first, so any m will do, as will any number of stages
in loop placement, or in V.
"""

from __future__ import annotations

from dataclasses import replace

from evenflow.cost import StageCost
from evenflow.program.actions import Backward, Compute, Forward, InputBackward, Order, WeightBackward
from evenflow.program.placement import placement_of
from evenflow.program.schedules.groups import groups_of
from evenflow.program.schedules.listing import Policy, list_schedule
from evenflow.program.times import decode
from evenflow.program.work import Work, even_work


def interleaved(work: Work) -> Order:
    """The compute order of each rank."""
    if placement_of(work.stage_rank) == "v" or work.stages % work.ranks:
        return _listed(work)
    groups = groups_of(work.microbatches, work.ranks)
    return tuple(_rank(stages, work.stages, groups) for stages in work.rank_stages)


def _rank(held: tuple[int, ...], stages: int, groups: tuple[range, ...]) -> tuple[Compute, ...]:
    forwards = [Forward(stage, k) for group in groups for stage in held for k in group]
    backwards = [Backward(stage, k) for group in groups for stage in reversed(held) for k in group]
    warm_up = min(_warm_up(held, stages, groups), len(forwards))
    order: list[Compute] = list(forwards[:warm_up])
    for at, backward in enumerate(backwards):
        order.append(backward)
        order += forwards[warm_up + at : warm_up + at + 1]
    return tuple(order)


def _warm_up(held: tuple[int, ...], stages: int, groups: tuple[range, ...]) -> int:
    """Forwards before the first backward.

    The first group must be through all of the rank's stages but the last before anything comes back. From there on
    one more forward is needed for each stage between that one and the model's end, and one for each on the way back.
    """
    return (len(held) - 1) * len(groups[0]) + 2 * (stages - 1 - held[-1]) + 1


def _listed(work: Work) -> Order:
    """Stages in V, or not equally many on all ranks: no rule fits all of these, so the order is played out.

    A whole backward is an input half of two seconds with a weight half of none right after it. Forwards may run ahead
    by so much and no further, whatever it would bring: else memory would grow with the number of microbatches.
    """
    even = replace(even_work(work.stage_rank, work.microbatches), costs=(StageCost(1.0, 2.0, 2.0, 0.0),) * work.stages)
    groups = groups_of(work.microbatches, work.ranks)
    target = tuple(_warm_up(held, work.stages, groups) for held in work.rank_stages)
    at_once = (0.0,) * work.ranks
    listed = [
        one
        for extra in (0, 2, 2 * work.ranks)
        for deep_first in (True, False)
        if (one := list_schedule(even, Policy(target, tuple(own + extra for own in target), at_once, 0.0, deep_first)))
    ]
    order = decode(min(listed, key=lambda one: one[1].makespan)[0], work)
    return tuple(
        tuple(
            Backward(own.stage, own.microbatch) if isinstance(own, InputBackward) else own
            for own in actions
            if not isinstance(own, WeightBackward)
        )
        for actions in order
    )
