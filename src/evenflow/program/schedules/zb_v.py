"""ZB-V: two stages on each rank, back and forth, without idle at 1F1B's memory.

Two ranks, four stages (rank 0: 0 and 3, rank 1: 1 and 2), three microbatches; a stage's number stands before F, I or W:

    rank 0 | 0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 0I0 3W1 0I1 3F2 3I2 0W0 0W1 0I2 3W2 0W2
    rank 1 |     1F0 2F0 1F1 2F1 2I0 1I0 1F2 2I1 1I1 2F2 2W0 1W0 2I2 1I2 2W1 1W1 2W2 1W2

A microbatch comes back to rank 0 for its last stage, so its backward begins there, and every rank frees what it
holds equally early. Where F = I = W and m >= 2p - 1 no rank idles between its own first and last action, and none
holds more than p microbatches (Qi et al. 2024, arXiv:2405.15362, section 3.3; Qi et al. 2023, arXiv:2401.10241,
section 6). The papers draw it; here it is listed: of forwards the deeper stage first, weight halves in the gaps,
under the cap of p microbatches. Drawn for F = I = W it idles where they differ, so the best list schedule for the
given costs under the same cap is taken where that has the shorter span.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import inf

from evenflow.program.actions import Order
from evenflow.program.schedules.automatic import capped
from evenflow.program.schedules.listing import Policy, list_schedule
from evenflow.program.times import decode, encode, order_times
from evenflow.program.work import Work, even_work


def zb_v(work: Work) -> Order:
    """The compute order of each rank; rank r of p holds stages r and 2p - 1 - r."""
    drawn = [encode(order, work) for order in _drawn(work.stage_rank, work.microbatches)]
    if work.costs != even_work(work.stage_rank, work.microbatches).costs:
        drawn.append(encode(capped(work, work.ranks, effort=1.0), work))
    return decode(min(drawn, key=lambda coded: order_times(coded, work).longest_span), work)


def _drawn(stage_rank: tuple[int, ...], microbatches: int) -> list[Order]:
    """The orders for F = I = W with the shortest span; a few settings serve all sizes."""
    even = even_work(stage_rank, microbatches)
    p = even.ranks
    even = replace(even, cap=(float(p),) * p)
    backlogs = ((inf,) * p, (2.0,) * p, tuple(2.0 * rank for rank in range(p)))
    listed = [
        one
        for target, backlog in product((1, 2 * p - 1, 2 * p), backlogs)
        if (one := list_schedule(even, Policy((target,) * p, (2.0 * p,) * p, backlog))) is not None
    ]
    shortest = min(times.longest_span for _, times in listed)
    return [decode(coded, even) for coded, times in listed if times.longest_span == shortest]
