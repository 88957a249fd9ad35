"""Forward only: evaluation, where nothing is kept and nothing comes back.

    rank 0 | F0 F1 F2 F3
    rank 1 |    F0 F1 F2 F3
    rank 2 |       F0 F1 F2 F3

A rank with several stages takes microbatches through them group by group, as interleaved 1F1B does.
"""

from __future__ import annotations

from evenflow.program.actions import Forward, Order
from evenflow.program.schedules.groups import groups_of
from evenflow.program.work import Work


def forward_only(work: Work) -> Order:
    """The compute order of each rank, in any placement."""
    groups = groups_of(work.microbatches, work.ranks)
    return tuple(
        tuple(Forward(stage, microbatch) for group in groups for stage in stages for microbatch in group)
        for stages in work.rank_stages
    )
