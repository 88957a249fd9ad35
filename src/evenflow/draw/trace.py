"""Timelines as a trace that Perfetto and chrome://tracing open: for steps too long for a picture or a page.

The form is Chrome's Trace Event Format. Each timeline is a process and each of its ranks a thread, which has

* a slice ("X") for each action, named by its token, with what the rank waited for before it;
* an arrow from each send to the compute action that uses its tensor: two slices with one `bind_id`;
* a counter ("C") of the bytes that the rank holds, where they are known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, assert_never

from evenflow.draw.boxes import begin_s
from evenflow.draw.words import plain
from evenflow.errors import InputError
from evenflow.program import (
    Action,
    Backward,
    Forward,
    InputBackward,
    Norm,
    ReceiveBackward,
    ReceiveForward,
    ReduceGrad,
    ReduceTied,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    Step,
    WeightBackward,
    action_kind,
    action_text,
)
from evenflow.timeline import Timeline, Wait, waits
from evenflow.units import format_percent, format_seconds

_NANOSECONDS = 1e9
_A_MICROSECOND = 1000  # nanoseconds: the format counts in microseconds

Event = dict[str, Any]


def timeline_trace(timelines: Sequence[Timeline], name: str) -> str:
    """Write timelines as one trace, each with its own begin at zero so that they lie above one another.

    Args:
        timelines: one, or predicted and measured.
        name: what ran.

    Returns:
        One JSON object, an event on each line.

    Raises:
        InputError: there is nothing to draw.
    """
    if not timelines:
        raise InputError("there is no timeline to draw; one or two would do")
    events: list[Event] = []
    arrows = count(1)
    for number, timeline in enumerate(timelines, 1):
        events += _process(timeline, number, plain(name), arrows)
    # In the order of time, a send that takes none before the compute action that uses its tensor at the same moment: to
    # a viewer an arrow that ends before it begins is none.
    events.sort(key=lambda event: (event.get("ts", -1), event.get("dur", 0) > 0))
    lines = ",\n".join(json.dumps(event, separators=(",", ":"), allow_nan=False) for event in events)
    return f'{{"displayTimeUnit":"ms","traceEvents":[\n{lines}\n]}}\n'


def _process(timeline: Timeline, process: int, name: str, arrows: Iterator[int]) -> Iterator[Event]:
    figures = f"step {format_seconds(timeline.step_s)}, idle {format_percent(timeline.idle_fraction)}"
    yield _named("process_name", process, 0, name=f"{timeline.origin}: {name}, {figures}")
    yield _named("process_sort_index", process, 0, sort_index=process)
    zero = begin_s(timeline)
    sends = (action for actions in timeline.program.ranks for action in actions)
    bind_ids = {arrow[0]: hex(next(arrows)) for arrow in map(_arrow, sends) if arrow and arrow[1]}
    for rank, found in enumerate(waits(timeline)):
        thread = rank + 1  # to some viewers thread 0 is the idle one
        yield _named("thread_name", process, thread, name=f"rank {rank}")
        yield _named("thread_sort_index", process, thread, sort_index=rank)
        yield from _slices(timeline, rank, found, process, zero, bind_ids)
        yield from _memory(timeline, rank, process, zero)


def _named(what: str, process: int, thread: int, **values: str | int) -> Event:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": values}


def _slices(
    timeline: Timeline, rank: int, found: Sequence[Wait], process: int, zero: float, bind_ids: dict[str, str]
) -> Iterator[Event]:
    waited: dict[Action, dict[str, float]] = {}
    for wait in found:
        cause = f"waited for rank {wait.peer}, ms" if wait.peer is not None else f"{wait.cause}, ms"
        before = waited.setdefault(wait.action, {})
        before[cause] = before.get(cause, 0.0) + round(wait.seconds * 1e3, 6)
    clock = 0
    for event in timeline.ranks[rank].events:
        # Whole nanoseconds, one action after the other: viewers nest slices that overlap by a float's last bits.
        start = max(_nanoseconds(event.start_s - zero), clock)
        clock = max(_nanoseconds(event.end_s - zero), start)
        drawn: Event = {
            "ph": "X",
            "name": action_text(event.action),
            "cat": action_kind(event.action),
            "pid": process,
            "tid": rank + 1,
            "ts": start / _A_MICROSECOND,
            "dur": (clock - start) / _A_MICROSECOND,
            "args": waited.get(event.action, {}),
        }
        arrow = _arrow(event.action)
        if arrow is not None and arrow[0] in bind_ids:
            drawn |= {"bind_id": bind_ids[arrow[0]], "flow_out" if arrow[1] else "flow_in": True}
        yield drawn


def _arrow(action: Action) -> tuple[str, bool] | None:
    """The tensor that an action sends (True) or uses (False), by its sender's token; None for all others."""
    match action:
        case SendForward() | SendBackward():
            return action_text(action), True
        case Forward(stage, microbatch):
            return action_text(SendForward(stage - 1, microbatch)), False
        case Backward(stage, microbatch) | InputBackward(stage, microbatch):
            return action_text(SendBackward(stage + 1, microbatch)), False
        case WeightBackward() | ReceiveForward() | ReceiveBackward() | ReleaseForward() | ReleaseBackward():
            return None
        case ReduceTied() | ReduceGrad() | Norm() | Step():
            return None
        case _:
            assert_never(action)


def _memory(timeline: Timeline, rank: int, process: int, zero: float) -> Iterator[Event]:
    """The bytes that a rank holds, whenever they change; it begins a step with what it held after the one before."""
    own = timeline.ranks[rank]
    if not own.memory:
        return
    held = own.memory[-1]
    moments = [(own.begin_s, held)]
    for end, after in zip(own.ends, own.memory, strict=True):
        if after != held:
            moments.append((end, after))
            held = after
    for moment, size in moments:
        yield {
            "ph": "C",
            "name": f"rank {rank} memory",
            "pid": process,
            "ts": max(_nanoseconds(moment - zero), 0) / _A_MICROSECOND,
            "args": {"bytes": size},
        }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _NANOSECONDS)
