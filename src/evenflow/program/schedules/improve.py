"""Local improvement: shorten what is longest by exchanging neighbours on the critical path.

The critical path runs from the last action back: to the action before it on its rank if that is what it waited
for, else to the action on another rank that made its input. Where it stays on one rank for several actions it
forms a block, and only changes at a block's ends, or weight halves moved out of it, can shorten the path (the
neighbourhood that Nowicki and Smutnicki 1996, Management Science 42(6), give for job shops).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from random import Random

from evenflow.program.times import BACKWARD, FORWARD, INPUT, WEIGHT, Coded, OrderTimes, order_times
from evenflow.program.work import Work

_SHAKEN = 3  # ranks on which an exchange is made to leave a place where none helps

Objective = Callable[[OrderTimes], tuple[float, ...]]
_Move = tuple[int, int, int]  # on a rank, the action at one position goes to another


def improve(work: Work, coded: Coded, objective: Objective, evaluations: int) -> tuple[Coded, tuple[float, ...]]:
    """Exchange actions for as long as the objective falls; returns the order and its objective.

    Args:
        work: costs and caps; an order that keeps under the caps is not made to exceed them.
        coded: the order to begin with.
        objective: what is to fall, of an order's times.
        evaluations: how many orders may be timed.
    """
    chance = Random(0)  # the same in every run
    start = [list(actions) for actions in coded]
    best = found = _Improved(start, order_times(start, work), objective(order_times(start, work)))
    left = evaluations
    while left > 0:
        found, left = _descend(found, work, objective, left)
        if found.score < best.score:
            best = found
        shaken = _shaken(best, work, chance)
        if shaken is None:
            break
        times, left = order_times(shaken, work), left - 1
        # Several exchanges may make a deadlock, whose critical path would lead round in a circle.
        found = best if times.makespan == inf else _Improved(shaken, times, objective(times))
    return best.coded, best.score


@dataclass(frozen=True, slots=True)
class _Improved:
    """An order, its times, and how good it is (less is better)."""

    coded: Coded
    times: OrderTimes
    score: tuple[float, ...]


def _descend(found: _Improved, work: Work, objective: Objective, left: int) -> tuple[_Improved, int]:
    """Take the first exchange that helps, again and again; returns how many evaluations are left."""
    improved = True
    while improved and left > 0:
        improved = False
        for move in _moves(found.coded, found.times, work):
            changed = _moved(found.coded, move, work)
            if changed is None:
                continue
            left -= 1
            times = order_times(changed, work)
            score = objective(times)
            if score < found.score:
                found, improved = _Improved(changed, times, score), True
                break
            if left <= 0:
                break
    return found, left


def _shaken(found: _Improved, work: Work, chance: Random) -> Coded | None:
    """Some exchanges on the critical path, whether they help or not: a way out of where none helps."""
    coded: Coded | None = None
    moves = list(_moves(found.coded, found.times, work))
    chance.shuffle(moves)
    ranks: set[int] = set()
    for move in moves:
        if move[0] in ranks or len(ranks) == _SHAKEN:
            continue  # positions are those before the first exchange
        changed = _moved(coded or found.coded, move, work)
        if changed is not None:
            coded = changed
            ranks.add(move[0])
    return coded


def _moves(coded: Coded, times: OrderTimes, work: Work) -> Iterator[_Move]:
    for rank, first, last in _blocks(coded, times, work):
        actions = coded[rank]
        for at in range(first, last):
            if actions[at] // work.microbatches // work.stages == WEIGHT:
                yield rank, at, last
        if first < last:
            yield rank, last, last - 1
            yield rank, first, first + 1


def _blocks(coded: Coded, times: OrderTimes, work: Work) -> Iterator[tuple[int, int, int]]:
    """Runs of actions on one rank along the critical path that ends last: rank, first and last position."""
    where = {number: (rank, at) for rank, actions in enumerate(coded) for at, number in enumerate(actions)}
    rank = max(range(len(coded)), key=lambda own: times.end[own][-1])
    at = last = len(coded[rank]) - 1
    while at >= 0:
        before = times.end[rank][at - 1] if at else 0.0
        if at and times.start[rank][at] <= before:
            at -= 1
            continue
        yield rank, at, last
        maker = _maker(coded[rank][at], where, work)
        if maker is None:
            return
        rank, at = maker
        last = at


def _maker(number: int, where: dict[int, tuple[int, int]], work: Work) -> tuple[int, int] | None:
    """Where the action is that makes the input of another."""
    microbatches, stages = work.microbatches, work.stages
    code, stage = divmod(number // microbatches, stages)
    if code == FORWARD:
        return where.get(number - microbatches) if stage else None
    if code == WEIGHT or stage == stages - 1:
        return None
    key = number % (stages * microbatches) + microbatches
    size = stages * microbatches
    return where.get(INPUT * size + key) or where.get(BACKWARD * size + key)


def _moved(coded: Coded, move: _Move, work: Work) -> Coded | None:
    """The order with one action moved on its rank; None where that breaks an order within the rank or the cap."""
    rank, source, target = move
    actions = list(coded[rank])
    number = actions.pop(source)
    size = work.stages * work.microbatches
    low, high = min(source, target), max(source, target)
    stage = number // work.microbatches % work.stages
    for other in coded[rank][low : high + 1]:
        if other == number:
            continue
        if other % size == number % size:
            return None  # F, I and W of one microbatch keep their order
        if other // size == number // size and other // work.microbatches % work.stages == stage:
            return None  # microbatches of one stage keep theirs
    actions.insert(target, number)
    if not _fits(actions, rank, work):
        return None
    return [actions if own == rank else others for own, others in enumerate(coded)]


def _fits(actions: list[int], rank: int, work: Work) -> bool:
    return counted_peak(actions, work) <= work.cap[rank] + 1e-9 * max(abs(work.cap[rank]), 1.0)


def counted_peak(actions: list[int], work: Work) -> float:
    """The most that a rank's actions keep at once, counted as `Work` counts it."""
    size, held, peak = work.stages * work.microbatches, 0.0, 0.0
    saved, pending = work.saved, work.pending
    for number in actions:
        code, stage = number // size, number // work.microbatches % work.stages
        if code == FORWARD:
            held += saved[stage]
            peak = max(peak, held)
        elif code == INPUT:
            held += pending[stage] - saved[stage]
        elif code == WEIGHT:
            held -= pending[stage]
        else:
            held -= saved[stage]
    return peak
