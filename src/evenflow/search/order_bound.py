"""A proven lower bound of a step whose stages are given: no order of their compute actions is faster.

On rank r, with F, I and the lesser of B and I + W of its stages for m microbatches:

* It begins once the first microbatch has come through the stages before its own first one, and then has all its work
  to do. NORM comes after that.
* Its first input half begins once the first microbatch has been to the model's end and its gradient has come back.
  All its backwards come after that, and so do the forwards that its memory cap kept it from running before.
* After its last input half, the gradient must still go back to the first stage, whose weight half follows; before it
  the rank has run all its forwards and input halves.

Transfers take their latency and bytes / bandwidth at the least. STEP follows the last NORM and the reduction.
"""

from __future__ import annotations

from math import floor, inf

from evenflow.program import Work
from evenflow.simulate import Hardware


def order_bound_s(work: Work, hardware: Hardware) -> float:
    """Seconds that a step of this work takes at least, every rank on a processor of its own."""
    slowest_update = max(cost.optimizer_s for cost in hardware.ranks)
    begin = [cost.optimizer_s - slowest_update for cost in hardware.ranks]
    forward = [cost.forward_s for cost in work.costs]
    half = [min(cost.input_s, cost.backward_s) for cost in work.costs]
    backward = [min(cost.backward_s, cost.input_s + cost.weight_s) for cost in work.costs]
    arrival = _running(begin[work.stage_rank[0]], forward, work.lag)
    back = _running(0.0, half, work.lag)  # from the end of a stage's I to the end of the first stage's
    home = _running(0.0, half[::-1], work.lag[::-1])[::-1]  # from the last forward's end to a stage's I
    first_rank = hardware.ranks[work.stage_rank[0]]
    after_first = max(backward[0] - half[0], 0.0) + first_rank.norm_s
    turned = arrival[-1] + forward[-1]
    norm_at = 0.0
    for rank, held in enumerate(work.rank_stages):
        m, own_norm = work.microbatches, hardware.ranks[rank].norm_s
        forwards = m * sum(forward[stage] for stage in held)
        halves = m * sum(half[stage] for stage in held)
        backwards = m * sum(backward[stage] for stage in held)
        reached = max(arrival[held[0]], begin[rank])
        returned = turned + home[held[-1]]
        later = _later_forwards(work, rank)
        tail = back[held[0]] + (after_first if held[0] else 0.0)
        norm_at = max(
            norm_at,
            reached + forwards + backwards + own_norm,
            returned + later + backwards + own_norm,
            reached + forwards + halves + tail,
            returned + later + halves + tail,
        )
    return norm_at + hardware.reduce_s + slowest_update


def _running(start: float, seconds: list[float], lag: tuple[float, ...]) -> list[float]:
    """For each stage, `start` and all seconds and lags of the stages before it."""
    sums = [start]
    for own, to_next in zip(seconds, lag, strict=False):
        sums.append(sums[-1] + own + to_next)
    return sums


def _later_forwards(work: Work, rank: int) -> float:
    """Seconds of forwards that a rank cannot run before its first input half, since its cap holds no more of them."""
    held = work.rank_stages[rank]
    count = work.microbatches * len(held)
    least = min(work.saved[stage] for stage in held)
    fits = count if work.cap[rank] == inf or least <= 0 else floor(work.cap[rank] / least * (1 + 1e-9))
    return max(count - fits, 0) * min(work.seconds[0][stage] for stage in held)
