"""Lowering: a schedule's compute order in, a whole program out, with every transfer, release and update placed.

    compute order   rank 0:  F0 F1 B0 B1                 rank 1:  F0 B0 F1 B1
    program         rank 0:  F0 SEND_F0 RECV_B0 F1 SEND_F1 RECV_B1 B0 B1 RELEASE_F0 RELEASE_F1 NORM STEP

* A send starts right after the compute action that made its tensor; RELEASE completes it. Receives and releases are
  placed so that transfers are hidden and few tensors are held (`postings.py`).
* On every directed edge between two ranks receives stand in the order of the sends, whatever the order in which
  they are needed: transports without tags need that.
* A stage's gradients are reduced right after the last of them, so that the reduction overlaps what follows;
  those of tied weights are added together first, group after group in the same order on all ranks.
* Every rank then takes the norm of its gradients and updates its parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.errors import ProgramError
from evenflow.program.actions import (
    Action,
    Backward,
    Compute,
    Norm,
    Order,
    ReduceGrad,
    ReduceTied,
    Step,
    WeightBackward,
)
from evenflow.program.placement import check_stages
from evenflow.program.postings import KNOWN, UNKNOWN, Postings, place_postings
from evenflow.program.program import Program
from evenflow.program.text import action_text
from evenflow.program.times import OrderTimes
from evenflow.program.work import Work, even_work


def lower(
    order: Order,
    stage_rank: Sequence[int],
    microbatches: int,
    work: Work | None = None,
    *,
    forward_only: bool = False,
    reduces: bool = False,
    tied: Sequence[Sequence[int]] = (),
) -> Program:
    """Add communication, releases, reductions and the optimizer to each rank's compute order.

    Args:
        order: each rank's compute actions.
        stage_rank: the rank that holds each stage.
        microbatches: microbatches of the step.
        work: what actions and transfers cost; by default that is not known, and a second and nothing are assumed.
        forward_only: whether there is no backward and no update.
        reduces: whether weight gradients are added over data-parallel replicas.
        tied: groups of stages that share weights; those that are all on one rank need nothing added, but their
            gradients are complete only when all of them have theirs.

    Raises:
        ProgramError: an action's stage is not on its rank, or its microbatch does not exist; a stage is on no rank or
            tied stages are none of the program's; there is no microbatch.
    """
    ranks = tuple(stage_rank)
    _check_shape(order, ranks, microbatches, tied)
    _check_places(order, ranks, microbatches)
    slack = KNOWN if work else UNKNOWN
    placed = place_postings(order, work or even_work(ranks, microbatches), slack)
    reductions = None if forward_only else _place_reductions(order, ranks, placed.times, tied, reduces)
    return Program(
        stage_rank=ranks,
        microbatches=microbatches,
        ranks=tuple(
            _lower_rank(actions, placed, rank, None if reductions is None else reductions[rank])
            for rank, actions in enumerate(order)
        ),
        forward_only=forward_only,
        reduces=reduces,
        tied=tuple(map(tuple, tied)),
    )


def _check_shape(order: Order, ranks: tuple[int, ...], microbatches: int, tied: Sequence[Sequence[int]]) -> None:
    if not order or not ranks:
        raise ProgramError("a program needs at least one rank and one stage")
    if microbatches < 1:
        raise ProgramError(f"a step of {microbatches} microbatches has nothing to do; 1 would be the least")
    check_stages(ranks, len(order), tied)


def _check_places(order: Order, ranks: tuple[int, ...], microbatches: int) -> None:
    """What all that follows takes for granted; `verify` has the rest."""
    for rank, actions in enumerate(order):
        for action in actions:
            if not 0 <= action.stage < len(ranks) or ranks[action.stage] != rank:
                raise ProgramError(f"rank {rank}: {action_text(action)}: stage {action.stage} is not on this rank")
            if not 0 <= action.microbatch < microbatches:
                raise ProgramError(f"rank {rank}: {action_text(action)}: microbatches run from 0 to {microbatches - 1}")


def _place_reductions(
    order: Order, ranks: tuple[int, ...], times: OrderTimes, tied: Sequence[Sequence[int]], reduces: bool
) -> list[list[list[Action]]]:
    """For each rank and each of its compute actions, the reductions to start after it."""
    placed: list[list[list[Action]]] = [[[] for _ in actions] for actions in order]
    last: dict[int, int] = {}  # where each stage's last gradient is computed
    for actions in order:
        last |= {own.stage: at for at, own in enumerate(actions) if isinstance(own, Backward | WeightBackward)}

    def complete_at(group: Sequence[int]) -> float:
        return max((times.end[ranks[stage]][last[stage]] for stage in group), default=0.0)

    slots = [0] * len(order)
    for group in sorted(([stage for stage in group if stage in last] for group in tied), key=complete_at):
        if len({ranks[stage] for stage in group}) == 1:  # one tensor: whole once all of them have added to it
            last |= dict.fromkeys(group, max(last[stage] for stage in group))
            continue
        for stage in group:
            slots[ranks[stage]] = max(slots[ranks[stage]], last[stage])
        for stage in group:
            last[stage] = slots[ranks[stage]]
            placed[ranks[stage]][last[stage]].append(ReduceTied(stage))
    for stage in sorted(last) if reduces else ():
        placed[ranks[stage]][last[stage]].append(ReduceGrad(stage))
    return placed


def _lower_rank(
    compute: tuple[Compute, ...], placed: Postings, rank: int, reductions: list[list[Action]] | None
) -> tuple[Action, ...]:
    program: list[Action] = []
    sends, receives, releases = placed.sends[rank], placed.receives[rank], placed.releases[rank]
    for at, (action, send) in enumerate(zip(compute, sends, strict=True)):
        program += receives[at]
        program += releases[at]
        program.append(action)
        if send is not None:
            program.append(send)
        if reductions is not None:
            program += reductions[at]
    program += releases[-1]
    return tuple(program) if reductions is None else (*program, Norm(), Step())
