"""The data that stands inside a report, which its script draws: each rank's boxes and its waits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from evenflow.draw.boxes import begin_s, boxes, end_s
from evenflow.draw.idle_rows import CAUSES
from evenflow.program import Action, action_text
from evenflow.timeline import RankTimeline, Timeline, Wait, waits

_DIGITS = 9  # nanoseconds: far below what any clock here tells apart


def timeline_island(timelines: Sequence[Timeline]) -> str:
    """The timelines as JSON that may stand between script tags.

    For each rank, columns of its boxes: token, start, end; and, by a box's index where there was any, what
    the rank waited for before it: seconds of each cause, then the peer (null where it waited for none).
    """
    data = {"causes": CAUSES, "timelines": [_timeline(timeline) for timeline in timelines]}
    return script_json(data)


def script_json(data: object) -> str:
    """JSON without the characters by which a page could take it for markup."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _timeline(timeline: Timeline) -> dict[str, Any]:
    zero = begin_s(timeline)
    return {
        "origin": timeline.origin,
        "step_s": round(timeline.step_s, _DIGITS),
        "span_s": round(end_s(timeline) - zero, _DIGITS),
        "ranks": [_rank(timeline, rank, found, zero) for rank, found in enumerate(waits(timeline))],
    }


def _rank(timeline: Timeline, rank: int, found: Sequence[Wait], zero: float) -> dict[str, Any]:
    own, drawn = timeline.ranks[rank], list(boxes(timeline, rank))
    return {
        "begin_s": round(own.begin_s - zero, _DIGITS),
        "end_s": round(own.end_s - zero, _DIGITS),
        "actions": [action_text(box.event.action) for box in drawn],
        "starts": [round(box.start_s, _DIGITS) for box in drawn],
        "ends": [round(box.end_s, _DIGITS) for box in drawn],
        "waits": _waits_by_box(own, found, {box.event.action for box in drawn}),
    }


def _waits_by_box(own: RankTimeline, all_waits: Sequence[Wait], drawn: set[Action]) -> dict[str, list[Any]]:
    """What each drawn action's gap consists of; that of actions that are not drawn goes to the next one."""
    by_action: dict[Action, list[Wait]] = {}
    for wait in all_waits:
        by_action.setdefault(wait.action, []).append(wait)
    found: dict[str, list[Any]] = {}
    pending: list[Wait] = []
    box = 0
    for event in own.events:
        pending += by_action.get(event.action, [])
        if event.action not in drawn:
            continue
        if pending:
            seconds = [sum(wait.seconds for wait in pending if wait.cause == cause) for cause in CAUSES]
            peer = next((wait.peer for wait in pending if wait.peer is not None), None)
            if any(value > 0 for value in seconds):
                found[str(box)] = [*(round(value, _DIGITS) for value in seconds), peer]
            pending = []
        box += 1
    return found
