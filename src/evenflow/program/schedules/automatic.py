"""ZB-1p and ZB-2p: schedules made for given costs under a memory cap of p or 2p microbatches on each rank.

    rank 0 | F0 F1 F2 F3 . . I0 W0 F4 I1 W1 ...      forwards until the first gradient, as the cap allows;
    rank 1 |    F0 F1 F2 . I0 F3 I1 W0 F4 I2 ...     then forwards and input halves in turn,
    rank 2 |       F0 F1 I0 F2 I1 F3 I2 W0 ...       weight halves in the gaps and at the end

The method is that of Qi et al. 2023 (arXiv:2401.10241, section 3): a greedy schedule with a few settings, of which
all combinations are tried (`in_turn`). Beside it stand lists played by policies, of which there are many more: their
settings for every rank are varied one by one for as long as that helps. The best of all is taken.
What is made short is the longest span of any rank from its own first to its own last action, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, product
from math import inf

from evenflow.program.actions import Order
from evenflow.program.schedules.in_turn import all_ways, in_turn
from evenflow.program.schedules.listing import Policy, list_schedule
from evenflow.program.schedules.zb_h1 import zb_h1
from evenflow.program.schedules.zb_h2 import zb_h2
from evenflow.program.times import Coded, OrderTimes, decode, encode, order_times
from evenflow.program.work import Work

# What a search may cost, the same on every machine and in every run: actions listed and timed in all. A long step is
# searched on fewer microbatches, as its middle repeats itself, and only the best settings are tried on all of them.
_ACTIONS, _ACTIONS_LONG = 600_000, 250_000
_LEAST = 20  # listings that are made in any case
_LONG = 4  # microbatches a rank from which a step of more than so many actions is long
_MANY = 1_600
_FINALISTS = 4

Objective = Callable[[OrderTimes], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Listing:
    """A listed order, its times, and how good it is (less is better)."""

    policy: Policy
    coded: Coded
    score: tuple[float, ...]


def zb_1p(work: Work) -> Order:
    """The compute order of each rank, none of which holds more than p microbatches."""
    return capped(work, work.ranks, effort=0.25)  # under so tight a cap there is little to choose


def zb_2p(work: Work) -> Order:
    """The compute order of each rank, none of which holds more than 2p microbatches."""
    return capped(work, 2 * work.ranks, effort=1.0)


def capped(work: Work, microbatches: int, effort: float) -> Order:
    """The order of the shortest span found in which no rank holds more than so many microbatches.

    A microbatch on a rank counts one; its stages have equal parts, of which half is left between I and W.
    """
    share = tuple(1.0 / work.stage_rank.count(rank) for rank in work.stage_rank)
    return _shortest_span(
        replace(work, saved=share, pending=tuple(own / 2 for own in share), cap=(float(microbatches),) * work.ranks),
        effort,
    )


@lru_cache(maxsize=16)  # who compares schedules asks for the same ones again
def _shortest_span(work: Work, effort: float) -> Order:
    def span(times: OrderTimes) -> tuple[float, ...]:
        return times.longest_span, times.makespan

    found = [listing.coded for listing in best_listings(work, span, effort)]
    if work.stages == work.ranks:  # those drawn by hand keep under these caps: ZB-H1 under p, ZB-H2 under 2p
        found.append(encode((zb_h1 if work.cap[0] == work.ranks else zb_h2)(work), work))
        found += [coded for ways in all_ways() if (coded := in_turn(work, ways)) is not None]
    return decode(min(found, key=lambda coded: span(order_times(coded, work))), work)


def best_listings(work: Work, objective: Objective, effort: float = 1.0, keep: int = 1) -> list[Listing]:
    """The best list schedules found, best first; empty where the caps leave no way.

    Args:
        work: what is scheduled.
        objective: what should be small, of a schedule's times.
        effort: 1 lists some hundred thousand actions in all.
        keep: how many are returned.
    """
    each = 3 * work.stages
    most = _LONG * work.ranks
    if work.microbatches <= most or each * work.microbatches <= _MANY:
        return _search(work, objective, max(int(effort * _ACTIONS) // (each * work.microbatches), _LEAST))[:keep]
    short = replace(work, microbatches=most)
    found = _search(short, objective, max(int(effort * _ACTIONS_LONG) // (each * short.microbatches), _LEAST))
    # What is best for a short step may drift in a long one: the likeliest settings are tried there as well.
    policies = {*(listing.policy for listing in found[:_FINALISTS]), *islice(_grid(work), int(effort * _LEAST))}
    listings = [listing for policy in policies if (listing := _list(work, policy, objective)) is not None]
    return sorted(listings, key=lambda own: (own.score, own.policy.target, own.policy.backlog))[:keep]


def _list(work: Work, policy: Policy, objective: Objective) -> Listing | None:
    listed = list_schedule(work, policy)
    return None if listed is None else Listing(policy, listed[0], objective(listed[1]))


def _search(work: Work, objective: Objective, most: int) -> list[Listing]:
    """Try the grid, vary its best settings rank by rank; at most so many listings are made."""
    tried: dict[Policy, Listing | None] = {}

    def attempt(policy: Policy) -> Listing | None:
        if policy not in tried and len(tried) < most:
            tried[policy] = _list(work, policy, objective)
        return tried.get(policy)

    for policy in _grid(work):
        if len(tried) * 2 >= most:
            break
        attempt(policy)
    starts = sorted((own for own in tried.values() if own is not None), key=lambda own: own.score)
    families: dict[tuple[float, bool], Listing] = {}  # the best of each way to wait: they end in different places
    for start in starts:
        families.setdefault((start.policy.patience, start.policy.most == start.policy.target), start)
    for start in families.values():
        best = start
        while (better := next(_better(best, attempt), None)) is not None:
            best = better
    return sorted((own for own in tried.values() if own is not None), key=lambda own: own.score)


def _better(best: Listing, attempt: Callable[[Policy], Listing | None]) -> Iterator[Listing]:
    """Listings that differ from the best on one rank and are better."""
    for policy in _neighbours(best.policy):
        found = attempt(policy)
        if found is not None and found.score < best.score:
            yield found


def _grid(work: Work) -> Iterator[Policy]:
    """Policies from what fits each rank's place in the pipeline, the likeliest first."""
    deep = (True,) if work.stages == work.ranks else (True, False)
    waiting = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.5, 0.0), (0.0, inf), (0.5, 1.0), (1.0, inf))
    places = product((1.0, 0.5, 1.05, 1.1, 0.75, 1.25), (1.1, 1.0, 0.5, inf, 0.0))
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
    boundary = [there + back for there, back in zip(work.lag, work.back_lag, strict=True)]
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
