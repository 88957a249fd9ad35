"""Local improvement: shorten what is longest by moving actions of the critical path, also through worse orders.

The critical path runs from the last action back: to the action before it on its rank if that is what it waited
for, else to the action on another rank that made its input. Where it stays on one rank for several actions it
forms a block. Only an action moved to a block's begin or end, or from there into it, can shorten the path (Nowicki
and Smutnicki 1996, Management Science 42(6); Balas and Vazacopoulos 1998, Management Science 44(2)). What a
move is worth is estimated from how early the moved actions can begin and how much must follow them, without timing
all others (Taillard 1994, ORSA Journal on Computing 6(2)). Of all moves the best estimate is taken, even where it is
worse than what there was, but none that takes back one of the last few: a tabu search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from random import Random

from evenflow.program.times import BACKWARD, FORWARD, INPUT, WEIGHT, Coded, OrderTimes, order_times
from evenflow.program.work import Work

_REACH = 12  # how far into a block actions are moved
_TABU = (6, 14)  # for how many moves one may not be taken back
_PATIENCE = 150  # moves without a better order, after which the search goes back to the best and leaves it elsewhere
_SHAKEN = (2, 6)  # exchanges that it leaves it by

Score = tuple[float, float]
_Move = tuple[int, int, int]  # on a rank, the action at one position goes to another


def improve(
    work: Work, coded: Coded, after: Sequence[float], evaluations: int, goal: float = 0.0
) -> tuple[Coded, Score]:
    """Move actions for as long as allowed; returns the best order and its score.

    A score is when the last rank is through with what follows its compute; then the sum of their ends, as ranks that
    are done early leave room to improve. No order found is worse than the one to begin with.

    Args:
        work: costs and caps; an order that keeps under the caps is not made to exceed them.
        coded: the order to begin with.
        after: for each rank, seconds of what follows its last action.
        evaluations: how many orders may be timed.
        goal: a score that is enough.
    """
    return _Search(work, coded, after).run(coded, evaluations, goal)


@dataclass(frozen=True, slots=True)
class _Found:
    """An order, its times, and how good it is (less is better)."""

    coded: Coded
    times: OrderTimes
    score: Score


class _Search:
    def __init__(self, work: Work, coded: Coded, after: Sequence[float]) -> None:
        self.work, self.after = work, after
        self.stages, self.microbatches = work.stages, work.microbatches
        self.size = self.stages * self.microbatches
        self.seconds = [own for code in work.seconds for own in code for _ in range(self.microbatches)]
        # By an action's number: the action that makes its input (-1 where it needs none), how long that travels, and
        # the actions for which it makes the input itself.
        self.maker, self.travels = [-1] * (4 * self.size), [0.0] * (4 * self.size)
        self.makes: list[list[int]] = [[] for _ in range(4 * self.size)]
        present = {number for actions in coded for number in actions}
        for number in present:
            maker, self.travels[number] = self._maker(number, present)
            self.maker[number] = maker
            if maker >= 0:
                self.makes[maker].append(number)
        self.chance = Random(0)  # the same in every run

    def _maker(self, number: int, present: set[int]) -> tuple[int, float]:
        microbatches, size = self.microbatches, self.size
        code, stage = divmod(number // microbatches, self.stages)
        if code == FORWARD:
            return (number - microbatches, self.work.lag[stage - 1]) if stage else (-1, 0.0)
        if code == WEIGHT:
            return number - size, 0.0
        if stage == self.stages - 1:
            return number % size, 0.0
        key = number % size + microbatches
        return (INPUT if INPUT * size + key in present else BACKWARD) * size + key, self.work.back_lag[stage]

    def run(self, coded: Coded, evaluations: int, goal: float) -> tuple[Coded, Score]:
        """Go from order to order by the best move that is not tabu."""
        best = found = self._found([list(actions) for actions in coded])
        tabu: dict[tuple[int, bool], int] = {}  # until when an action may not go back (False) or forth (True)
        better_at = turn = 0
        while evaluations > 0 and best.score[0] > goal:
            turn += 1
            changed: _Found | None = None
            for (rank, source, target), estimate in self._moves(found):
                direction = found.coded[rank][source], source < target
                if tabu.get(direction, -1) >= turn and estimate >= best.score[0] * (1 - 1e-9):
                    continue
                actions = _moved(found.coded[rank], source, target)
                if not _fits(actions, rank, self.work):
                    continue
                evaluations -= 1
                changed = self._found([actions if own == rank else kept for own, kept in enumerate(found.coded)])
                if changed.score[0] < inf:
                    tabu[direction[0], not direction[1]] = turn + self.chance.randrange(*_TABU)
                    break
                changed = None  # a deadlock, whose critical path would lead round in a circle
            if changed is not None:
                found = changed
                if found.score < best.score:
                    better_at = turn if found.score[0] < best.score[0] else better_at
                    best = found
            if changed is None or turn - better_at > _PATIENCE:
                found, better_at, evaluations = self._shaken(best), turn, evaluations - 1
                tabu.clear()
        return best.coded, best.score

    def _found(self, coded: Coded) -> _Found:
        times = order_times(coded, self.work)
        ends = [own[-1] for own in times.end]
        return _Found(coded, times, (max(end + more for end, more in zip(ends, self.after, strict=True)), sum(ends)))

    def _shaken(self, found: _Found) -> _Found:
        """Some exchanges of neighbours anywhere, whether they help or not."""
        for _ in range(self.chance.randint(*_SHAKEN)):
            rank = self.chance.randrange(len(found.coded))
            actions = found.coded[rank]
            if len(actions) < 2:
                continue
            at = self.chance.randrange(len(actions) - 1)
            if self._keeps_order(actions, at, at + 1):
                exchanged = _moved(actions, at, at + 1)
                if _fits(exchanged, rank, self.work):
                    changed = self._found([exchanged if own == rank else kept for own, kept in enumerate(found.coded)])
                    found = changed if changed.score[0] < inf else found
        return found

    def _moves(self, found: _Found) -> list[tuple[_Move, float]]:
        """Moves that may shorten the critical path, and the estimates of what becomes of it, the best first."""
        tails = self._tails(found)
        begins = {
            number: start
            for actions, starts in zip(found.coded, found.times.start, strict=True)
            for number, start in zip(actions, starts, strict=True)
        }
        moves: set[_Move] = set()
        for rank, first, last in self._blocks(found, begins):
            actions = found.coded[rank]
            moves.update((rank, at, last) for at in range(first, last) if self._may_leave(actions[at], at, last))
            moves.update((rank, last, at) for at in range(max(first, last - _REACH), last))
            moves.update((rank, at, first) for at in range(first + 1, min(last, first + _REACH) + 1))
            moves.update((rank, first, at) for at in range(first + 1, min(last, first + _REACH) + 1))
        legal = sorted(move for move in moves if self._keeps_order(found.coded[move[0]], *move[1:]))
        rated = [(self._estimate(found, begins, tails, move), self.chance.random(), move) for move in legal]
        return [(move, estimate) for estimate, _, move in sorted(rated)]

    def _may_leave(self, number: int, at: int, last: int) -> bool:
        """Whether an action is tried behind its block: weight halves from anywhere, others from near its end."""
        return number // self.size == WEIGHT or last - at <= _REACH

    def _blocks(self, found: _Found, begins: dict[int, float]) -> Iterator[tuple[int, int, int]]:
        """Runs of actions on one rank along a critical path, by chance where there are several: rank, first, last."""
        coded, times = found.coded, found.times
        where = {number: (rank, at) for rank, actions in enumerate(coded) for at, number in enumerate(actions)}
        rank = max(range(len(coded)), key=lambda own: times.end[own][-1] + self.after[own])
        near = 1e-9 * found.score[0]
        at = last = len(coded[rank]) - 1
        while True:
            number = coded[rank][at]
            begin, maker = begins[number], self.maker[number]
            by_rank = at > 0 and times.end[rank][at - 1] >= begin - near
            by_input = maker >= 0 and where[maker][0] != rank and begin > near
            by_input = by_input and begins[maker] + self.seconds[maker] + self.travels[number] >= begin - near
            if by_rank and (not by_input or self.chance.random() < 0.5):
                at -= 1
                continue
            yield rank, at, last
            if not by_input:
                return
            rank, at = where[maker]
            last = at

    def _tails(self, found: _Found) -> list[float]:
        """By an action's number, the seconds that must follow its end."""
        tails = [0.0] * (4 * self.size)
        turns = found.times.turn
        latest_first = sorted(
            ((turn, rank, at) for rank, own in enumerate(turns) for at, turn in enumerate(own)), reverse=True
        )
        for _, rank, at in latest_first:
            actions = found.coded[rank]
            number = actions[at]
            following = actions[at + 1] if at + 1 < len(actions) else -1
            tail = tails[following] + self.seconds[following] if following >= 0 else self.after[rank]
            for made in self.makes[number]:
                tail = max(tail, self.travels[made] + self.seconds[made] + tails[made])
            tails[number] = tail
        return tails

    def _estimate(self, found: _Found, begins: dict[int, float], tails: list[float], move: _Move) -> float:
        """The longest path through the moved actions, had nothing else moved."""
        rank, source, target = move
        actions = found.coded[rank]
        low, high = min(source, target), max(source, target)
        passed = _moved(actions[low : high + 1], source - low, target - low)
        now = found.times.end[rank][low - 1] if low else 0.0
        ends: dict[int, float] = {}
        for number in passed:
            maker = self.maker[number]
            if maker >= 0:
                made = ends[maker] if maker in ends else begins[maker] + self.seconds[maker]
                now = max(now, made + self.travels[number])
            now += self.seconds[number]
            ends[number] = now
        following = actions[high + 1] if high + 1 < len(actions) else -1
        tail = tails[following] + self.seconds[following] if following >= 0 else self.after[rank]
        longest = 0.0
        own_tails: dict[int, float] = {}
        for number in reversed(passed):
            for made in self.makes[number]:
                more = own_tails[made] if made in own_tails else tails[made]
                tail = max(tail, self.travels[made] + self.seconds[made] + more)
            own_tails[number] = tail
            longest = max(longest, ends[number] + tail)
            tail += self.seconds[number]
        return longest

    def _keeps_order(self, actions: list[int], source: int, target: int) -> bool:
        """Whether F, I and W of a microbatch keep their order, and so do the microbatches of a stage."""
        number, size, microbatches = actions[source], self.size, self.microbatches
        kind, key = number // microbatches, number % size
        passed = actions[source + 1 : target + 1] if source < target else actions[target:source]
        return all(other % size != key and other // microbatches != kind for other in passed)


def _moved(actions: list[int], source: int, target: int) -> list[int]:
    moved = list(actions)
    moved.insert(target, moved.pop(source))
    return moved


def _fits(actions: list[int], rank: int, work: Work) -> bool:
    return work.cap[rank] == inf or counted_peak(actions, work) <= work.cap[rank] + 1e-9 * max(abs(work.cap[rank]), 1.0)


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
