"""Who is to blame for idle: a rank's waiting followed to whoever was at work meanwhile.

A rank that waits for its peer may wait for a peer that itself waits for a third rank. So each moment of a wait is
followed from rank to rank until one is found that was computing, or whose own time went into a transfer, a reduction or
overhead. That is the root cause of a wait state (Boehme et al., Identifying the root causes of wait states in
large-scale parallel applications, 2010, section 3), taken moment by moment.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from evenflow.program import Action, action_kind
from evenflow.timeline.idle import Cause, waits
from evenflow.timeline.timeline import BUSY, OPTIMIZER, RankTimeline, Timeline

_NOTHING = 1e-12  # relative to the step: less is a float's last bits

Work = Literal["work"]


@dataclass(frozen=True, slots=True)
class Blame:
    """Idle seconds of one rank that go back to one thing.

    Attributes:
        rank: whose time it was: the rank that worked meanwhile, or that stood in a transfer, a reduction or overhead.
        cause: `work` where that rank worked; else what its own time went into.
        kind: what the rank was at: the kind of its action (`F`, `B`, `I`, `W`, `NORM`, `STEP`), or of the one held up.
        stage: the action's stage, if it has one.
        seconds: how long.
    """

    rank: int
    cause: Work | Cause
    kind: str
    stage: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class _Span:
    """A stretch of a rank's step: work, or idle by one cause; where it waits, for which rank."""

    begin_s: float
    end_s: float
    cause: Work | Cause
    action: Action
    peer: int | None


def blames(timeline: Timeline) -> tuple[tuple[Blame, ...], ...]:
    """All idle of each rank by what it goes back to, longest first; the seconds of a rank add up to its `idle_s`."""
    return tuple(_summed(pair[1] for pair in own) for own in _traced(timeline))


def root_blames(timeline: Timeline) -> tuple[dict[Action, Blame], ...]:
    """For each rank and each of its actions that was waited before, what most of that idle goes back to."""
    found: list[dict[Action, Blame]] = []
    for own in _traced(timeline):
        by_action: dict[Action, list[Blame]] = {}
        for action, blame in own:
            by_action.setdefault(action, []).append(blame)
        found.append({action: _summed(parts)[0] for action, parts in by_action.items()})
    return tuple(found)


def _summed(parts: Iterable[Blame]) -> tuple[Blame, ...]:
    """Parts that go back to the same thing as one, longest first."""
    sums: dict[tuple[int, Work | Cause, str, int | None], float] = {}
    for own in parts:
        key = (own.rank, own.cause, own.kind, own.stage)
        sums[key] = sums.get(key, 0.0) + own.seconds
    return tuple(Blame(*key, seconds) for key, seconds in sorted(sums.items(), key=lambda item: -item[1]))


def _traced(timeline: Timeline) -> Iterator[list[tuple[Action, Blame]]]:
    """For each rank the stretches of its idle: the action held up, and what the stretch goes back to."""
    spans = _all_spans(timeline)
    begins = [[span.begin_s for span in own] for own in spans]
    least = _NOTHING * timeline.step_s
    for rank, own in enumerate(spans):
        found: list[tuple[Action, Blame]] = []
        for span in own:
            if span.cause == "work":
                continue
            for whose, root, seconds in _roots(spans, begins, rank, span, least):
                if seconds > least:
                    stage = getattr(root.action, "stage", None)
                    found.append((span.action, Blame(whose, root.cause, action_kind(root.action), stage, seconds)))
        yield found


def _roots(
    spans: list[list[_Span]], begins: list[list[float]], rank: int, span: _Span, least: float
) -> Iterator[tuple[int, _Span, float]]:
    """What a stretch of idle goes back to: whose time, which stretch of it, how long."""
    todo = [(rank, span, span.begin_s, span.end_s, 0)]
    while todo:
        whose, own, begin, end, hops = todo.pop()
        # Clocks that disagree can make ranks wait for each other: as many hops as ranks is one too many.
        if own.cause != "waiting" or own.peer is None or own.peer == whose or hops >= len(spans):
            yield whose, own, end - begin
            continue
        theirs, now = spans[own.peer], begin
        at = max(bisect_right(begins[own.peer], begin) - 1, 0)
        while now < end - least and at < len(theirs):
            until = min(theirs[at].end_s, end)
            if until > now:
                todo.append((own.peer, theirs[at], now, until, hops + 1))
                now = until
            at += 1
        if end - now > 0:  # beyond the peer's own step: nothing is known but whom was waited for
            yield own.peer, own, end - now


def _all_spans(timeline: Timeline) -> list[list[_Span]]:
    return [list(_spans(own, found)) for own, found in zip(timeline.ranks, _by_action(timeline), strict=True)]


def _by_action(timeline: Timeline) -> list[dict[Action, list[tuple[Cause, int | None, float]]]]:
    """For each rank, the waits of each action. Overhead comes first, as an action is taken before it waits."""
    found: list[dict[Action, list[tuple[Cause, int | None, float]]]] = []
    order: dict[Cause, int] = {"overhead": 0, "waiting": 1, "transfer": 2, "reduction": 3}
    for own in waits(timeline):
        by_action: dict[Action, list[tuple[Cause, int | None, float]]] = {}
        for wait in sorted(own, key=lambda wait: order[wait.cause]):
            by_action.setdefault(wait.action, []).append((wait.cause, wait.peer, wait.seconds))
        found.append(by_action)
    return found


def _spans(own: RankTimeline, waited: dict[Action, list[tuple[Cause, int | None, float]]]) -> Iterator[_Span]:
    """A rank's step without holes: its actions that are work, and each stretch of idle by its cause."""
    now = own.begin_s
    for action, start, end in zip(own.actions, own.starts, own.ends, strict=True):
        is_work = type(action) in BUSY or type(action) in OPTIMIZER
        until = start if is_work else end
        for cause, peer, seconds in waited.get(action, ()):
            stop = now + seconds
            yield _Span(now, stop, cause, action, peer)
            now = stop
        if is_work:
            # What comes after the last action's end, in an evaluation, was counted above: time only moves on.
            yield _Span(max(now, until), max(end, now), "work", action, None)
            now = max(end, now)
