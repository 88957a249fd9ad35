"""By which times an order's receives are posted: those of its costs hide transfers best; evenly may hold less."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.plan import Posting
from evenflow.program import Order, Program, Work, lower, peak_bytes
from evenflow.simulate import Hardware


def posted_program(
    order: Order,
    work: Work,
    hardware: Hardware,
    caps: Sequence[float],
    reduces: bool = False,
    tied: Sequence[Sequence[int]] = (),
) -> tuple[Program, Posting]:
    """The program of an order that hides transfers best under the caps; where none keeps, the one least over them."""

    def over(program: Program) -> float:
        return max(peak_bytes(program, hardware.memory, rank) - cap for rank, cap in enumerate(caps))

    by_costs = lower(order, work.stage_rank, work.microbatches, work, reduces=reduces, tied=tied)
    if over(by_costs) <= 0:
        return by_costs, "costs"
    evenly = lower(order, work.stage_rank, work.microbatches, reduces=reduces, tied=tied)
    return (evenly, "even") if over(evenly) < over(by_costs) else (by_costs, "costs")
