"""ZB-1p and ZB-2p: schedules made for given costs under a memory cap of p or 2p microbatches on each rank.

    rank 0 | F0 F1 F2 F3 . . I0 W0 F4 I1 W1 ...      forwards until the first gradient, as the cap allows;
    rank 1 |    F0 F1 F2 . I0 F3 I1 W0 F4 I2 ...     then forwards and input halves in turn,
    rank 2 |       F0 F1 I0 F2 I1 F3 I2 W0 ...       weight halves in the gaps and at the end

The method is that of Qi et al. 2023 (arXiv:2401.10241, section 3): a greedy schedule with a few settings, of which
all combinations are tried. Here the settings of every rank are then varied one by one for as long as that helps.
What is made short is the longest span of any rank from its own first to its own last action, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import inf

from evenflow.program.actions import Order
from evenflow.program.schedules.listing import Policy, list_schedule
from evenflow.program.times import Coded, OrderTimes, decode, order_times
from evenflow.program.work import Work

# Actions that may be listed in all: what a search costs, the same on every machine and in every run.
_ACTIONS = 600_000
_LEAST = 64  # listings that are made in any case
_STARTS = 8  # settings of the grid from which ranks are varied

Objective = Callable[[OrderTimes], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Listing:
    """A listed order, its times, and how good it is (less is better)."""

    policy: Policy
    coded: Coded
    score: tuple[float, ...]


def zb_1p(work: Work) -> Order:
    """The compute order of each rank, none of which holds more than p microbatches."""
    return _capped(work, work.ranks)


def zb_2p(work: Work) -> Order:
    """The compute order of each rank, none of which holds more than 2p microbatches."""
    return _capped(work, 2 * work.ranks)


def _capped(work: Work, microbatches: int) -> Order:
    """A microbatch on a rank counts one; its stages have equal parts, of which half is left between I and W."""
    share = tuple(1.0 / work.stage_rank.count(rank) for rank in work.stage_rank)
    counted = replace(
        work, saved=share, pending=tuple(own / 2 for own in share), cap=(float(microbatches),) * work.ranks
    )
    found = best_listings(counted, lambda times: (times.longest_span, times.makespan))
    return decode(found[0].coded, work)


def best_listings(work: Work, objective: Objective, actions: int = _ACTIONS, keep: int = 1) -> list[Listing]:
    """The best list schedules found, best first; empty where the caps leave no way."""
    size = 3 * work.stages * work.microbatches
    most = max(actions // size, _LEAST)
    tried: dict[Policy, Listing | None] = {}

    def attempt(policy: Policy) -> Listing | None:
        if policy not in tried and len(tried) < most:
            coded = list_schedule(work, policy)
            tried[policy] = None if coded is None else Listing(policy, coded, objective(order_times(coded, work)))
        return tried.get(policy)

    for policy in _grid(work):
        if len(tried) * 2 >= most:
            break
        attempt(policy)
    starts = sorted((own for own in tried.values() if own is not None), key=lambda own: own.score)
    for start in starts[:_STARTS]:
        best = start
        while (better := next(_better(best, attempt), None)) is not None:
            best = better
    return sorted((own for own in tried.values() if own is not None), key=lambda own: own.score)[:keep]


def _better(best: Listing, attempt: Callable[[Policy], Listing | None]) -> Iterator[Listing]:
    """Listings that differ from the best on one rank and are better."""
    for policy in _neighbours(best.policy):
        found = attempt(policy)
        if found is not None and found.score < best.score:
            yield found


def _grid(work: Work) -> Iterator[Policy]:
    """Policies from what fits each rank's place in the pipeline, the likeliest first."""
    deep = (True,) if work.stages == work.ranks else (True, False)
    waiting = ((0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.0, inf), (0.5, 1.0), (1.0, inf))
    places = product((1.0, 0.5, 1.1, 0.75, 1.25), (1.0, 0.5, 1.25, 0.0, inf))
    fitting = [_fitting(work, ahead, put_off) for ahead, put_off in places]
    for (patience, extra), (target, backlog), deep_first in product(waiting, fitting, deep):
        yield Policy(target, tuple(own + extra for own in target), backlog, patience, deep_first)


def _fitting(work: Work, ahead: float, put_off: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """For each rank: forwards that fit before its first gradient, and weight halves to put off to its end.

    While a microbatch goes on from a stage to the model's end and its gradient comes back, the rank can run forwards;
    while it comes to the stage from the model's begin, and the last gradient goes back there, weight halves.
    """
    forward, _, half, weight = work.seconds
    there_and_back = [one + other for one, other in zip(forward, half, strict=True)]
    boundary = [2 * seconds for seconds in work.transfer_s]
    target: list[int] = []
    backlog: list[float] = []
    for held in work.rank_stages:
        after = sum(sum(there_and_back[stage + 1 :]) + sum(boundary[stage:]) for stage in held)
        before = sum(sum(there_and_back[:stage]) + sum(boundary[:stage]) for stage in held)
        own_forward = sum(forward[stage] for stage in held)
        own_weight = sum(weight[stage] for stage in held)
        target.append(1 + round(ahead * after / own_forward) if own_forward else work.microbatches)
        late = inf if put_off == inf else put_off * before
        backlog.append(float(-(-late // own_weight)) if own_weight and late < inf else inf)
    return tuple(target), tuple(backlog)


def _neighbours(policy: Policy) -> Iterator[Policy]:
    """Policies that differ on one rank."""
    for by in (1, -1, 2, -2):
        for rank in range(len(policy.target)):
            target, most, backlog = list(policy.target), list(policy.most), list(policy.backlog)
            if backlog[rank] < inf and backlog[rank] + by >= 0:
                backlog[rank] += by
                yield replace(policy, backlog=tuple(backlog))
            if target[rank] + by >= 1:
                target[rank] += by
                most[rank] = max(most[rank] + by, 1)
                yield replace(policy, target=tuple(target), most=tuple(most))
