"""Where a rank posts its receives and completes its sends: early enough to hide transfers, late enough to stay small.

When a tensor is made and used, and how long it travels, follows from the times of the compute order (`times.py`).

* A receive is posted when its tensor is made, and at the latest so many compute actions before the one that uses it.
* A send is completed, and its tensor freed, before the first compute action that begins when the tensor has arrived,
  but not before a few more of its kind are made (so that no small delay is waited for) and not after many more are (so
  that the tensors on their way stay bounded however slow the link is and however many microbatches there are).
* Where tensors of one stage and direction would pile up before a slow rank, the times are those of `pacing.py`.

Taken by those times every receive is posted no later than its tensor is made, and every release comes after both. So
there is an order in which everything can happen: no deadlock can come of it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from evenflow.program.actions import (
    Order,
    ReceiveBackward,
    ReceiveForward,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
)
from evenflow.program.pacing import paced_times
from evenflow.program.times import FORWARD, WEIGHT, Coded, OrderTimes, encode, order_times
from evenflow.program.work import Work

Send = SendForward | SendBackward
Receive = ReceiveForward | ReceiveBackward
Release = ReleaseForward | ReleaseBackward
# A message as one number: ((whether backward) * stages + stage that it arrives at) * microbatches + microbatch.
Messages = list[list[int]]
_NOTHING = -1


@dataclass(frozen=True, slots=True)
class Slack:
    """What is added to what the times say.

    Attributes:
        ahead: compute actions that a receive is posted ahead at least.
        least: tensors of one stage and direction that may be on their way at once, however quickly they travel.
        most: and however slowly.
    """

    ahead: int
    least: int
    most: int


# With costs the times know how long a transfer takes. Without, one that takes as long as three actions is hidden.
KNOWN = Slack(ahead=1, least=2, most=16)
UNKNOWN = Slack(ahead=3, least=4, most=4)
_SLOWER = 1.01  # a fast rank is held back where that makes the step no longer than by this factor


@dataclass(frozen=True, slots=True)
class Postings:
    """For each rank, what stands beside its compute actions.

    Attributes:
        times: when the compute actions run.
        sends: the one that follows each; None where its output stays on the rank.
        receives: those posted before each.
        releases: those before each; one entry more: those after the last.
    """

    times: OrderTimes
    sends: list[list[Send | None]]
    receives: list[list[list[Receive]]]
    releases: list[list[list[Release]]]


def place_postings(order: Order, work: Work, slack: Slack) -> Postings:
    """Place all sends, receives and releases of an order."""
    coded = encode(order, work)
    needs, gives = _traffic(coded, work)
    times = order_times(coded, work)
    edges = _arrivals(needs, gives, work, times, slack.ahead)
    most = 2 * max(slack.most, work.stages)
    if _most_waiting(edges, work.microbatches) > most:
        paced = paced_times(order, work, most)
        if paced is not None and paced.makespan <= times.makespan * _SLOWER:
            times = paced
            edges = _arrivals(needs, gives, work, times, slack.ahead)
    posted: list[list[list[_Arrival]]] = [[[] for _ in actions] for actions in order]
    for (_, target), arrivals in edges.items():
        for arrival in arrivals:
            posted[target][arrival.slot].append(arrival)
    return Postings(
        times=times,
        sends=[[_send(message, work) for message in own] for own in gives],
        receives=[[_receives(slot, work) for slot in slots] for slots in posted],
        releases=[_releases(own, times, rank, work, slack) for rank, own in enumerate(gives)],
    )


def _traffic(coded: Coded, work: Work) -> tuple[Messages, Messages]:
    """For each compute action, the message that it waits for and the one that it makes."""
    microbatches, half = work.microbatches, work.stages * work.microbatches
    apart = [False, *(one != other for one, other in pairwise(work.stage_rank)), False]  # from the stage before
    needs: Messages = []
    gives: Messages = []
    for numbers in coded:
        own_needs, own_gives = [_NOTHING] * len(numbers), [_NOTHING] * len(numbers)
        for at, number in enumerate(numbers):
            code, key = divmod(number, half)
            stage = key // microbatches
            if code == FORWARD:
                if apart[stage]:
                    own_needs[at] = key
                if apart[stage + 1]:
                    own_gives[at] = key + microbatches
            elif code != WEIGHT:
                if apart[stage + 1]:
                    own_needs[at] = half + key
                if apart[stage]:
                    own_gives[at] = half + key - microbatches
        needs.append(own_needs)
        gives.append(own_gives)
    return needs, gives


@dataclass(slots=True)
class _Arrival:
    """A message where it is received: when it was made, before which compute action it is posted, which needs it."""

    made: tuple[float, int]
    slot: int
    need: int
    message: int


def _arrivals(
    needs: Messages, gives: Messages, work: Work, times: OrderTimes, ahead: int
) -> dict[tuple[int, int], list[_Arrival]]:
    """What comes over each directed edge between two ranks, in the order in which it is sent."""
    stages, microbatches = work.stages, work.microbatches
    needed_at = {message: at for own in needs for at, message in enumerate(own)}
    edges: dict[tuple[int, int], list[_Arrival]] = {}
    done = _moments(times)
    for rank, own in enumerate(gives):
        for at, message in enumerate(own):
            need = needed_at.get(message)
            if message == _NOTHING or need is None:
                continue
            target = work.stage_rank[message // microbatches % stages]
            made = times.end[rank][at], times.turn[rank][at]
            slot = min(bisect_right(done[target], made), max(need - ahead, 0))
            edges.setdefault((rank, target), []).append(_Arrival(made, slot, need, message))
    for (_, target), arrivals in edges.items():
        slot = len(needs[target])
        for arrival in reversed(arrivals):
            slot = arrival.slot = min(slot, arrival.slot)
    return edges


def _moments(times: OrderTimes) -> list[list[tuple[float, int]]]:
    """When each compute action is done, to be compared with when a tensor is made.

    An action that ends just when the tensor is made began before that, so it cannot wait for it, unless it takes no
    time. Those that take none are told apart by an order in which all can happen: a receive that is posted after an
    action that has to come later would never be posted.
    """
    return [
        [(end, turn if start == end else -1) for start, end, turn in zip(starts, ends, turns, strict=True)]
        for starts, ends, turns in zip(times.start, times.end, times.turn, strict=True)
    ]


def _most_waiting(edges: dict[tuple[int, int], list[_Arrival]], microbatches: int) -> int:
    """The most receives of one stage and direction that are posted and not yet used."""
    most = 0
    for arrivals in edges.values():
        kinds: dict[int, tuple[list[int], list[int]]] = {}
        for arrival in arrivals:
            slots, needs = kinds.setdefault(arrival.message // microbatches, ([], []))
            slots.append(arrival.slot)
            needs.append(arrival.need)
        for slots, needs in kinds.values():
            used = np.searchsorted(np.sort(needs), slots)
            most = max(most, int((np.arange(1, len(slots) + 1) - used).max()))
    return most


def _receives(slot: list[_Arrival], work: Work) -> list[Receive]:
    """The receives posted before one compute action, in the order in which their tensors are made."""
    found: list[Receive] = []
    for arrival in sorted(slot, key=lambda own: own.made) if len(slot) > 1 else slot:
        place, microbatch = divmod(arrival.message, work.microbatches)
        is_backward, stage = divmod(place, work.stages)
        found.append((ReceiveBackward if is_backward else ReceiveForward)(stage, microbatch))
    return found


def _send(message: int, work: Work) -> Send | None:
    """The send of a message, which names the stage that sends it."""
    if message == _NOTHING:
        return None
    place, microbatch = divmod(message, work.microbatches)
    is_backward, stage = divmod(place, work.stages)
    return SendBackward(stage + 1, microbatch) if is_backward else SendForward(stage - 1, microbatch)


def _releases(gives: list[int], times: OrderTimes, rank: int, work: Work, slack: Slack) -> list[list[Release]]:
    """For each compute action of a rank, the releases before it; last those after all of them."""
    slots: list[list[Release]] = [[] for _ in range(len(gives) + 1)]
    made_at: dict[int, list[int]] = {}  # by direction and stage
    for at, message in enumerate(gives):
        if message != _NOTHING:
            made_at.setdefault(message // work.microbatches, []).append(at)
    for place, own in sorted(made_at.items()):
        is_backward, target = divmod(place, work.stages)
        kind, stage = (ReleaseBackward, target + 1) if is_backward else (ReleaseForward, target - 1)
        seconds = work.back_lag[target] if is_backward else work.lag[stage]
        arrived = np.searchsorted(times.start[rank], np.array(times.end[rank])[own] + seconds).tolist()
        ends = [*own, *[len(gives)] * slack.most]
        for number, at in enumerate(own):
            slot = min(max(ends[number + slack.least], arrived[number]), ends[number + slack.most])
            slots[slot].append(kind(stage, gives[at] % work.microbatches))
    return slots
