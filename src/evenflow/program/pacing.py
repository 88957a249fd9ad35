"""When each compute action would run if no rank got more than so many tensors ahead of the one that uses them.

A fast rank before a slow one would pile up its tensors, more with every microbatch, in buffers that are of no use:
the slow rank is no sooner done. Lowering posts receives by these times where those of the order alone pile up.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf

from evenflow.program.actions import Order
from evenflow.program.times import BACKWARD, FORWARD, INPUT, WEIGHT, OrderTimes, encode
from evenflow.program.work import Work


def paced_times(order: Order, work: Work, most: int) -> OrderTimes | None:
    """The times of an order in which a tensor is made only while fewer than `most` before it wait for their use.

    Tensors of each stage and direction that go to another rank are counted on their own.

    Returns:
        The times; None where the order itself asks for more of them, so that ranks would wait for each other for ever.
    """
    pace = _Pace(order, work, most)
    pace.run()
    if any(len(own) < len(actions) for own, actions in zip(pace.end, order, strict=True)):
        return None
    return OrderTimes(pace.start, pace.end, pace.turn)


class _Pace:
    """The state of the walk; a tensor's key is its direction (forward, backward) times stages + the sender's stage."""

    def __init__(self, order: Order, work: Work, most: int) -> None:
        self.coded, self.most = encode(order, work), most
        self.stages, self.microbatches = work.stages, work.microbatches
        self.seconds = [own for code in work.seconds for own in code]
        self.lag = [*work.lag, 0.0, 0.0, *work.back_lag]
        next_is_apart = [one != other for one, other in pairwise(work.stage_rank)]
        self.travels = [*next_is_apart, False, False, *next_is_apart]
        keys = 2 * work.stages
        self.arrival: list[dict[int, float]] = [{} for _ in range(keys)]  # by microbatch
        self.made = [0] * keys
        self.used: list[list[float]] = [[] for _ in range(keys)]  # when, in the order of use
        self.waiter = [-1] * keys  # the rank that waits for such a tensor
        self.held_up = [-1] * keys  # the rank that may make no more of them for now
        self.start: list[list[float]] = [[] for _ in order]
        self.end: list[list[float]] = [[] for _ in order]
        self.turn: list[list[int]] = [[] for _ in order]
        self.turns = 0
        self.ready = list(range(len(order)))[::-1]

    def run(self) -> None:
        """Let every rank go as far as it can; whoever it frees goes on."""
        while self.ready:
            rank = self.ready.pop()
            for number in self.coded[rank][len(self.end[rank]) :]:
                place, microbatch = divmod(number, self.microbatches)
                code, stage = divmod(place, self.stages)
                if not self._take(rank, code, stage, microbatch, self.seconds[place]):
                    break

    def _take(self, rank: int, code: int, stage: int, microbatch: int, seconds: float) -> bool:
        """Run one action; False where its input is not there, or its output would be one too many."""
        needs, gives = self._keys(code, stage)
        now = max(self.end[rank][-1] if self.end[rank] else 0.0, self._arrives(needs, microbatch))
        if now == inf:
            self.waiter[needs] = rank
            return False
        if gives >= 0 and self.travels[gives] and self.made[gives] >= self.most:
            place = self.made[gives] - self.most
            if len(self.used[gives]) <= place:
                self.held_up[gives] = rank
                return False
            now = max(now, self.used[gives][place])
        self.start[rank].append(now)
        self.end[rank].append(now + seconds)
        self.turn[rank].append(self.turns)
        self.turns += 1
        if needs >= 0 and self.travels[needs]:
            self.used[needs].append(now + seconds)
            self._wake(self.held_up, needs)
        if gives >= 0:
            self.made[gives] += 1
            self.arrival[gives][microbatch] = now + seconds + self.lag[gives]
            self._wake(self.waiter, gives)
        return True

    def _keys(self, code: int, stage: int) -> tuple[int, int]:
        """The keys of what an action needs from another stage and of what it gives to one; -1: nothing."""
        if code == FORWARD:
            return stage - 1, stage if stage < self.stages - 1 else -1
        if code in (BACKWARD, INPUT):
            return (
                self.stages + stage + 1 if stage < self.stages - 1 else -1,
                self.stages + stage if stage else -1,
            )
        assert code == WEIGHT
        return -1, -1

    def _arrives(self, key: int, microbatch: int) -> float:
        return 0.0 if key < 0 else self.arrival[key].get(microbatch, inf)

    def _wake(self, waiting: list[int], key: int) -> None:
        if waiting[key] >= 0:
            self.ready.append(waiting[key])
            waiting[key] = -1
