"""ZB-V: two stages on each rank, back and forth, without idle at 1F1B's memory.

Two ranks, four stages (rank 0: 0 and 3, rank 1: 1 and 2), three microbatches; a stage's number stands before F, I or W:

PICTURE

A microbatch comes back to rank 0 for its last stage, so its backward begins there, and every rank frees what it
holds equally early. Where F = I = W and m >= 2p - 1 no rank idles between its own first and last action, and none
holds more than p microbatches (Qi et al. 2024, arXiv:2405.15362, section 3.3; Qi et al. 2023, arXiv:2401.10241,
section 6). The papers draw it; here it is listed: of forwards the deeper stage first, weight halves in the gaps,
under the cap of p microbatches, for F = I = W.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import inf

from evenflow.program.actions import Order
from evenflow.program.schedules.listing import Policy, list_schedule
from evenflow.program.times import decode, order_times
from evenflow.program.work import Work, even_work


def zb_v(work: Work) -> Order:
    """The compute order of each rank; rank r of p holds stages r and 2p - 1 - r."""
    p = work.ranks
    even = replace(even_work(work.stage_rank, work.microbatches), cap=(float(p),) * p)
    backlogs = ((inf,) * p, (2.0,) * p, tuple(2.0 * rank for rank in range(p)))
    listed = [
        coded
        for target, backlog in product((1, 2 * p - 1, 2 * p), backlogs)
        if (coded := list_schedule(even, Policy((target,) * p, (2.0 * p,) * p, backlog))) is not None
    ]
    return decode(min(listed, key=lambda coded: order_times(coded, even).longest_span), work)
