"""A proven lower bound of a step whose stages are given: no order of their compute actions is faster.

A rank can begin once the first microbatch has come through the stages before its own first one, has all its F and
backwards to compute, and its norm after that; STEP follows the last norm. Besides, one microbatch must go forward
through all stages, its gradient back to the first, and that stage's weight half follow. A whole backward may be
split, so the lesser of B and I + W counts. Transfers take their latency and bytes / bandwidth at the least.
"""

from __future__ import annotations

from evenflow.program import Work
from evenflow.simulate import Hardware


def order_bound_s(work: Work, hardware: Hardware) -> float:
    """Seconds that a step of this work takes at least, every rank on a processor of its own."""
    slowest_update = max(cost.optimizer_s for cost in hardware.ranks)
    begin = [cost.optimizer_s - slowest_update for cost in hardware.ranks]
    forward = [cost.forward_s for cost in work.costs]
    backward = [min(cost.backward_s, cost.input_s + cost.weight_s) for cost in work.costs]
    arrival = begin[work.stage_rank[0]]
    reached: dict[int, float] = {}
    for stage, rank in enumerate(work.stage_rank):
        reached.setdefault(rank, max(arrival, begin[rank]))
        arrival += forward[stage] + (work.lag[stage] if stage < len(work.lag) else 0.0)
    norm_at = 0.0
    for rank, held in enumerate(work.rank_stages):
        own = sum(work.microbatches * (forward[stage] + backward[stage]) for stage in held)
        norm_at = max(norm_at, reached[rank] + own + hardware.ranks[rank].norm_s)
    back = sum(min(cost.input_s, cost.backward_s) for cost in work.costs[1:]) + sum(work.lag) + backward[0]
    norm_at = max(norm_at, arrival + back + hardware.ranks[work.stage_rank[0]].norm_s)
    return norm_at + hardware.reduce_s + slowest_update
