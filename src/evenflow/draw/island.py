"""The data that stands inside a report, which its script draws: each rank's boxes and its waits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from evenflow.draw.boxes import begin_s, boxes, end_s
from evenflow.draw.findings import blame_text
from evenflow.draw.idle_rows import CAUSES
from evenflow.program import Action, action_text
from evenflow.timeline import Blame, RankTimeline, Timeline, Wait, critical_path, root_blames, waits

_DIGITS = 9  # nanoseconds: far below what any clock here tells apart
_MOMENTS = 240  # of a rank's memory over time: a curve has about so many pixels to show


def timeline_island(timelines: Sequence[Timeline], memory_limit: int) -> str:
    """The timelines as JSON that may stand between script tags.

    For each rank, columns of its boxes: token, start, end; and, by a box's index where there was any, what
    the rank waited for before it: seconds of each cause, then the peer (null where it waited for none), its action, and
    whose work most of that goes back to where that is another rank's still (else null). `path` has the indexes of the
    boxes on the critical path, `memory` moments and bytes where they are known.
    """
    data = {
        "causes": CAUSES,
        "memory_limit": memory_limit,
        "timelines": [_timeline(timeline) for timeline in timelines],
    }
    return script_json(data)


def script_json(data: object) -> str:
    """JSON without the characters by which a page could take it for markup."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _timeline(timeline: Timeline) -> dict[str, Any]:
    zero = begin_s(timeline)
    on_path: list[set[Action]] = [set() for _ in timeline.ranks]
    for part in critical_path(timeline):
        if part.cause in ("busy", "optimizer"):
            on_path[part.rank].add(part.action)
    return {
        "origin": timeline.origin,
        "step_s": round(timeline.step_s, _DIGITS),
        "span_s": round(end_s(timeline) - zero, _DIGITS),
        "ranks": [
            _rank(timeline, rank, found, roots, zero, on_path[rank])
            for rank, (found, roots) in enumerate(zip(waits(timeline), root_blames(timeline), strict=True))
        ],
    }


def _rank(
    timeline: Timeline, rank: int, found: Sequence[Wait], roots: dict[Action, Blame], zero: float, on_path: set[Action]
) -> dict[str, Any]:
    own, drawn = timeline.ranks[rank], list(boxes(timeline, rank))
    return {
        "begin_s": round(own.begin_s - zero, _DIGITS),
        "end_s": round(own.end_s - zero, _DIGITS),
        "actions": [action_text(box.event.action) for box in drawn],
        "starts": [round(box.start_s, _DIGITS) for box in drawn],
        "ends": [round(box.end_s, _DIGITS) for box in drawn],
        "path": [at for at, box in enumerate(drawn) if box.event.action in on_path],
        "memory": _memory(own, zero),
        "waits": _waits_by_box(own, found, roots, {box.event.action for box in drawn}),
    }


def _waits_by_box(
    own: RankTimeline, all_waits: Sequence[Wait], roots: dict[Action, Blame], drawn: set[Action]
) -> dict[str, list[Any]]:
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
            whom = max((wait for wait in pending if wait.peer is not None), key=lambda wait: wait.seconds, default=None)
            peer = None if whom is None else whom.peer
            theirs = None if whom is None or whom.peer_action is None else action_text(whom.peer_action)
            root = None if whom is None else roots.get(whom.action)
            cause = blame_text(root) if root is not None and root.rank != peer else None
            if any(value > 0 for value in seconds):
                found[str(box)] = [*(round(value, _DIGITS) for value in seconds), peer, theirs, cause]
            pending = []
        box += 1
    return found


def _memory(own: RankTimeline, zero: float) -> list[list[float]]:
    """Moments and the bytes held from then on, thinned to the largest of each stretch; empty where not known."""
    if not own.memory:
        return []
    moments, held = [own.begin_s, *own.ends], [own.memory[-1], *own.memory]
    stride = max(-(-len(held) // _MOMENTS), 1)
    peaks = [max(range(at, min(at + stride, len(held))), key=held.__getitem__) for at in range(0, len(held), stride)]
    # What a process holds may be less than before it had its stage: a library gave back what it had taken.
    return [[round(moments[at] - zero, 6) for at in peaks], [max(held[at], 0) for at in peaks]]
