"""ZB-H1: 1F1B with the backward in halves; the weight half fills what would be idle, at 1F1B's memory.

    rank 0 | F0 F1 F2 F3 .  .  .  I0 W0 F4 I1 W1 F5 I2 W2 I3 W3 I4 W4 I5 W5
    rank 1 |    F0 F1 F2 .  .  I0 F3 I1 W0 F4 I2 W1 F5 I3 W2 I4 W3 I5 W4 W5
    rank 2 |       F0 F1 .  I0 F2 I1 F3 I2 W0 F4 I3 W1 F5 I4 W2 I5 W3 W4 W5
    rank 3 |          F0 I0 F1 I1 F2 I2 F3 I3 W0 F4 I4 W1 F5 I5 W2 W3 W4 W5

A gradient goes upstream after I alone, so the pipeline drains as fast as it filled. Rank r puts its weight
halves off by r microbatches and has them left for the end. Idle is (p-1)(F + I - W) on a rank, a third of 1F1B's
where F = I = W; no rank holds more than p microbatches, of which only a part between I and W
(Qi et al. 2023, arXiv:2401.10241, section 2.1 and table 2).
"""

from __future__ import annotations

from evenflow.program.actions import Order
from evenflow.program.schedules.halves import halves
from evenflow.program.work import Work


def zb_h1(work: Work) -> Order:
    """The compute order of each rank; rank r holds stage r."""
    p = work.stages
    return tuple(halves(rank, work.microbatches, warm_up=p - rank, delay=rank) for rank in range(p))
