"""When each compute action of an order would run if every transfer took a fixed time: the quick look at a schedule.

It knows no posting of receives, no busy wires and no optimizer; `simulate` does. Lowering needs it to know
which tensors lie about for how long, and the search for schedules to compare thousands of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TypeVar

from evenflow.program.actions import Backward, Compute, Forward, InputBackward, Order, WeightBackward
from evenflow.program.table import CODES
from evenflow.program.work import Work

# A compute action as one number: (code * stages + stage) * microbatches + microbatch.
Coded = list[list[int]]

Number = TypeVar("Number", int, float)

_COMPUTE: tuple[type[Compute], ...] = (Forward, Backward, InputBackward, WeightBackward)
FORWARD, BACKWARD, INPUT, WEIGHT = range(4)


@dataclass(frozen=True, slots=True)
class OrderTimes:
    """When each rank's compute actions run, by position.

    Attributes:
        start: seconds; infinite for what a deadlock keeps from running.
        end: seconds.
        turn: an order of all actions of all ranks in which they can run one by one: what tells moments apart that are
            equal, where actions take no time (empty where nobody asked).
    """

    start: list[list[float]]
    end: list[list[float]]
    turn: list[list[int]] = field(default_factory=list)

    @property
    def makespan(self) -> float:
        """From the first start to the last end."""
        return max(ends[-1] for ends in self.end if ends) - min(starts[0] for starts in self.start if starts)

    @property
    def longest_span(self) -> float:
        """The longest that any rank takes from its own first action to its own last."""
        return max(ends[-1] - starts[0] for starts, ends in zip(self.start, self.end, strict=True) if starts)


def encode(order: Order, work: Work) -> Coded:
    """Actions to numbers."""
    stages, microbatches = work.stages, work.microbatches
    return [[(CODES[type(a)] * stages + a.stage) * microbatches + a.microbatch for a in actions] for actions in order]


def decode(coded: Coded, work: Work) -> Order:
    """Numbers to actions."""
    order: list[tuple[Compute, ...]] = []
    for numbers in coded:
        actions: list[Compute] = []
        for number in numbers:
            rest, microbatch = divmod(number, work.microbatches)
            code, stage = divmod(rest, work.stages)
            actions.append(_COMPUTE[code](stage, microbatch))
        order.append(tuple(actions))
    return tuple(order)


def order_times(coded: Coded, work: Work) -> OrderTimes:
    """Run every rank's actions in order, each as soon as its input is there."""
    stages, microbatches = work.stages, work.microbatches
    size = stages * microbatches
    seconds = [own for code in work.seconds for own in code]
    # When the tensor that an action needs arrives: by (whether backward, stage, microbatch); the ends need none.
    arrival = [0.0] * microbatches + [inf] * (2 * (size - microbatches)) + [0.0] * microbatches
    waiting = [-1] * (2 * size)
    lag_forward, lag_backward = [*work.lag, 0.0], [0.0, *work.back_lag]
    start: list[list[float]] = [[] for _ in coded]
    end: list[list[float]] = [[] for _ in coded]
    turn: list[list[int]] = [[] for _ in coded]
    turns = 0
    clock = [0.0] * len(coded)
    ready = list(range(len(coded)))[::-1]
    while ready:
        rank = ready.pop()
        now, actions, starts, ends = clock[rank], coded[rank], start[rank], end[rank]
        for number in actions[len(ends) :]:
            place = number // microbatches
            code, stage = divmod(place, stages)
            if code != WEIGHT:
                needs = number if code == FORWARD else number % size + size
                at = arrival[needs]
                if at == inf:
                    waiting[needs] = rank
                    break
                now = max(now, at)
            starts.append(now)
            now += seconds[place]
            ends.append(now)
            turn[rank].append(turns)
            turns += 1
            if code == FORWARD and stage < stages - 1:
                gives, lag = number + microbatches, lag_forward[stage]
            elif code in (BACKWARD, INPUT) and stage:
                gives, lag = number % size + size - microbatches, lag_backward[stage]
            else:
                continue
            arrival[gives] = now + lag
            if waiting[gives] >= 0:
                ready.append(waiting[gives])
                waiting[gives] = -1
        clock[rank] = now
    _fill(coded, start, inf)
    _fill(coded, end, inf)
    _fill(coded, turn, turns)
    return OrderTimes(start, end, turn)


def _fill(coded: Coded, columns: list[list[Number]], value: Number) -> None:
    """What a deadlock kept from running."""
    for actions, column in zip(coded, columns, strict=True):
        column += [value] * (len(actions) - len(column))
