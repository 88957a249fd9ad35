"""GPipe: all forwards, then all backwards (Huang et al. 2019, arXiv:1811.06965, section 2.3).

    rank 0 | F0 F1 F2 F3 .  .  .  .  B0 B1 B2 B3
    rank 1 |    F0 F1 F2 F3 .  .  B0 B1 B2 B3
    rank 2 |       F0 F1 F2 F3 B0 B1 B2 B3

Every microbatch is in flight at once: memory grows with their number. Backwards run in the forwards'
order (the paper draws them reversed), so that gradients add up as in every other schedule. A rank with several
stages takes them one by one, all microbatches through each: breadth first (Lamy-Poirier 2023,
arXiv:2211.05953, section 4.1), in any placement.
"""

from __future__ import annotations

from evenflow.program.actions import Backward, Forward, Order
from evenflow.program.work import Work


def gpipe(work: Work) -> Order:
    """The compute order of each rank."""
    microbatches = range(work.microbatches)
    return tuple(
        (
            *(Forward(stage, microbatch) for stage in stages for microbatch in microbatches),
            *(Backward(stage, microbatch) for stage in reversed(stages) for microbatch in microbatches),
        )
        for stages in work.rank_stages
    )
