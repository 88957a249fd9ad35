"""Few microbatches in flight: orders that hold less than 1F1B does, for caps under which nothing faster fits.

    rank 0 | F0 .  .  .  .  B0 F1 .  .  .  .  B1        with one in flight;
    rank 1 |    F0 .  .  B0 .  .  F1 .  .  B1           with as many as there are stages it is much like 1F1B
    rank 2 |       F0 B0 .  .  .  .  F1 B1 .

A microbatch is in flight from its first forward to the end of its last backward, over the whole pipeline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import inf

from evenflow.program.actions import Order
from evenflow.program.times import BACKWARD, FORWARD, INPUT, WEIGHT, Coded, decode
from evenflow.program.work import Work


def few_in_flight(work: Work, most: int, halved: Sequence[bool]) -> Order:
    """Each rank's actions, as soon as they can run: backwards before forwards, and later stages before earlier ones.

    Args:
        work: what is scheduled; its caps are not looked at.
        most: microbatches in flight at once, at least 1.
        halved: for each stage, whether its backward is I and W, one right after the other, or whole.
    """
    last, microbatches = work.stages - 1, work.microbatches
    forward_s, backward_s, input_s, weight_s = work.seconds
    # When each stage's next inputs and output gradients arrive, in microbatch order.
    inputs: list[deque[float]] = [deque() for _ in range(work.stages)]
    gradients: list[deque[float]] = [deque() for _ in range(work.stages)]
    inputs[0].extend([0.0] * min(most, microbatches))
    clock = [0.0] * work.ranks
    forwards, backwards = [0] * work.stages, [0] * work.stages
    order: Coded = [[] for _ in range(work.ranks)]

    def add(rank: int, code: int, stage: int, microbatch: int) -> None:
        order[rank].append((code * work.stages + stage) * microbatches + microbatch)

    for _ in range(2 * work.stages * microbatches):
        start, is_forward, stage = inf, False, 0
        for own in range(last, -1, -1):
            for waits, arrivals in ((False, gradients[own]), (True, inputs[own])):
                if arrivals:
                    at = max(clock[work.stage_rank[own]], arrivals[0])
                    if (at, waits) < (start, is_forward):
                        start, is_forward, stage = at, waits, own
        rank = work.stage_rank[stage]
        if is_forward:
            inputs[stage].popleft()
            add(rank, FORWARD, stage, forwards[stage])
            forwards[stage] += 1
            clock[rank] = start + forward_s[stage]
            if stage < last:
                inputs[stage + 1].append(clock[rank] + work.lag[stage])
            else:
                gradients[stage].append(clock[rank])
            continue
        gradients[stage].popleft()
        microbatch = backwards[stage]
        backwards[stage] += 1
        if halved[stage]:
            add(rank, INPUT, stage, microbatch)
            add(rank, WEIGHT, stage, microbatch)
            sent = start + input_s[stage]
            clock[rank] = sent + weight_s[stage]
        else:
            add(rank, BACKWARD, stage, microbatch)
            sent = clock[rank] = start + backward_s[stage]
        if stage:
            gradients[stage - 1].append(sent + work.back_lag[stage - 1])
        elif microbatch + most < microbatches:
            inputs[0].append(clock[rank])
    return decode(order, work)
