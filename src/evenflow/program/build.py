"""From a schedule's name to a whole program."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.program.lower import lower
from evenflow.program.program import Program
from evenflow.program.schedules import FORWARD_ONLY, compute_order, default_stage_rank
from evenflow.program.work import Work, even_work


def build_program(
    schedule: str,
    stage_rank: Sequence[int] | int,
    microbatches: int,
    work: Work | None = None,
    *,
    reduces: bool = False,
    tied: Sequence[Sequence[int]] = (),
) -> Program:
    """The program of a named schedule.

    Args:
        schedule: its name.
        stage_rank: the rank of each stage, or how many ranks there are, with the schedule's own placement.
        microbatches: microbatches of the step.
        work: what actions and transfers cost; by default a second and nothing.
        reduces: whether weight gradients are added over data-parallel replicas.
        tied: groups of stages that share weights.

    Raises:
        InputError: there is no such schedule, or it cannot run stages on these ranks.
    """
    ranks = default_stage_rank(schedule, stage_rank) if isinstance(stage_rank, int) else tuple(stage_rank)
    order = compute_order(schedule, ranks, microbatches, work)
    return lower(order, ranks, microbatches, work, reduces=reduces, tied=tied)


def evaluation_program(stage_rank: Sequence[int], microbatches: int) -> Program:
    """The program that only runs forwards."""
    order = FORWARD_ONLY.make(even_work(stage_rank, microbatches))
    return lower(order, stage_rank, microbatches, forward_only=True)
