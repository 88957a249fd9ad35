"""GPipe: all forwards, then all backwards (Huang et al. 2019, arXiv:1811.06965, section 2.3).

    rank 0 | F0 F1 F2 F3                B0 B1 B2 B3
    rank 1 |    F0 F1 F2 F3          B0 B1 B2 B3
    rank 2 |       F0 F1 F2 F3 B0 B1 B2 B3

Every microbatch is in flight at once: memory grows with their number. Backwards run in the forwards'
order (the paper draws them reversed), so that gradients add up as in every other schedule.
"""

from __future__ import annotations

from evenflow.program.actions import Backward, Compute, Forward


def gpipe(stages: int, microbatches: int) -> tuple[tuple[Compute, ...], ...]:
    """The compute order of each rank; rank r holds stage r."""
    return tuple(
        (
            *(Forward(stage, microbatch) for microbatch in range(microbatches)),
            *(Backward(stage, microbatch) for microbatch in range(microbatches)),
        )
        for stage in range(stages)
    )
