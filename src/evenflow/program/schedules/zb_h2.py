"""ZB-H2: no rank idles between its own first and last action, for almost twice 1F1B's memory.

    rank 0 | F0 F1 F2 F3 F4 I0 W0 F5 I1 W1 F6 I2 W2 I3 W3 I4 W4 I5 W5 I6 W6
    rank 1 |    F0 F1 F2 I0 F3 I1 F4 I2 W0 F5 I3 W1 F6 I4 W2 I5 W3 I6 W4 W5 W6
    rank 2 |       F0 I0 F1 I1 F2 I2 F3 I3 F4 I4 W0 F5 I5 W1 F6 I6 W2 W3 W4 W5 W6

Rank r runs as many forwards as fit until its first gradient comes, 2(p-r) - 1, and puts its weight halves off by
2r microbatches, so that input halves run ahead downstream. The ranks' steps are shifted against each other: that
is worth something only where one step's end may overlap the next one's begin. Needs m >= 2p - 1 to be without
idle; no rank holds more than 2p - 1 microbatches (Qi et al. 2023, arXiv:2401.10241, section 2.2 and table 2).
"""

from __future__ import annotations

from evenflow.program.actions import Order
from evenflow.program.schedules.halves import halves
from evenflow.program.work import Work


def zb_h2(work: Work) -> Order:
    """The compute order of each rank; rank r holds stage r."""
    p = work.stages
    return tuple(halves(rank, work.microbatches, warm_up=2 * (p - rank) - 1, delay=2 * rank) for rank in range(p))
