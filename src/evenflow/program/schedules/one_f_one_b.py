"""1F1B: as soon as a rank can, it alternates one forward and one backward.

    rank 0 | F0 F1 F2 .  .  B0 F3 B1 F4 B2 .  B3 .  B4
    rank 1 |    F0 F1 .  B0 F2 B1 F3 B2 F4 B3 .  B4
    rank 2 |       F0 B0 F1 B1 F2 B2 F3 B3 F4 B4

Stage s of p holds at most p - s microbatches in flight, however many there are: PipeDream-Flush
(Narayanan et al. 2021, arXiv:2006.09503, section 3.2). Idle with equal stages is (p-1)/(m+p-1).
"""

from __future__ import annotations

from evenflow.program.actions import Backward, Compute, Forward, Order
from evenflow.program.work import Work


def one_f_one_b(work: Work) -> Order:
    """The compute order of each rank; rank r holds stage r."""
    return tuple(_rank(stage, work.stages, work.microbatches) for stage in range(work.stages))


def _rank(stage: int, stages: int, microbatches: int) -> tuple[Compute, ...]:
    warm_up = min(stages - stage, microbatches)
    order: list[Compute] = [Forward(stage, microbatch) for microbatch in range(warm_up)]
    for microbatch in range(microbatches):
        order.append(Backward(stage, microbatch))
        if warm_up + microbatch < microbatches:
            order.append(Forward(stage, warm_up + microbatch))
    return tuple(order)
