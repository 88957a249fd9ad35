"""Who is to blame for idle: a rank's waiting followed to whoever made it wait, however many ranks stand between.

A rank that waits for its peer may wait for a peer that itself waits for a third rank. So a wait is taken apart by what
the peer has done since the two ranks were last level (since one of them waited for the other, or since the step began):
what it computed longer than the waiting rank did is the peer's own, and what it waited meanwhile goes back to what
those waits go back to. Who merely computed while others waited, as long as all, is not to blame. These are the delays
and their indirect costs of Boehme et al., Identifying the root causes of wait states in large-scale parallel
applications, 2010, section 3, with the waits of a step in the order of their ends in place of messages sent backwards.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Literal

from evenflow.program import Action, action_kind
from evenflow.timeline.idle import Cause, waits
from evenflow.timeline.timeline import BUSY, OPTIMIZER, RankTimeline, Timeline

_NOTHING = 1e-12  # relative to the step: less is a float's last bits
_CRUMB = 1e-3  # of a wait: what less of it goes back to is left out

Work = Literal["work"]
_Root = tuple[int, Work | Cause, str, int | None]  # the first four of a `Blame`


@dataclass(frozen=True, slots=True)
class Blame:
    """Idle seconds of one rank that go back to one thing.

    Attributes:
        rank: whose doing it was: the rank that worked, or that stood in a transfer, a reduction or overhead.
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
    sums: dict[_Root, float] = {}
    for own in parts:
        key = (own.rank, own.cause, own.kind, own.stage)
        sums[key] = sums.get(key, 0.0) + own.seconds
    return tuple(Blame(*key, seconds) for key, seconds in sorted(sums.items(), key=lambda item: -item[1]))


def _traced(timeline: Timeline) -> Iterator[list[tuple[Action, Blame]]]:
    """For each rank the stretches of its idle: the action held up, and what the stretch goes back to."""
    spans = _all_spans(timeline)
    shares = _shares(spans, _NOTHING * timeline.step_s)
    for rank, own in enumerate(spans):
        found: list[tuple[Action, Blame]] = []
        for at, span in enumerate(own):
            if span.cause == "work" or span.end_s <= span.begin_s:
                continue
            roots = shares.get((rank, at)) or {_root(rank, span): 1.0}
            found += [(span.action, Blame(*root, share * (span.end_s - span.begin_s))) for root, share in roots.items()]
        yield found


def _root(rank: int, span: _Span) -> _Root:
    return rank, span.cause, action_kind(span.action), getattr(span.action, "stage", None)


def _shares(spans: list[list[_Span]], least: float) -> dict[tuple[int, int], dict[_Root, float]]:
    """For each wait, by rank and place among its spans, the shares of what it goes back to. They add up to 1.

    Waits are taken in the order of their ends: what a wait goes back to is over before it is.
    """
    begins = [[span.begin_s for span in own] for own in spans]
    found: dict[tuple[int, int], dict[_Root, float]] = {}
    met: dict[tuple[int, int], list[float]] = {}  # when a rank's waits for another ended: then both were level
    places = sorted(
        (span.end_s, rank, at)
        for rank, own in enumerate(spans)
        for at, span in enumerate(own)
        if span.cause == "waiting"
    )
    for end, rank, at in places:
        span = spans[rank][at]
        if span.peer is None or span.peer == rank:
            found[rank, at] = {(rank, "work", action_kind(span.action), getattr(span.action, "stage", None)): 1.0}
            continue
        since = -inf
        for pair in ((rank, span.peer), (span.peer, rank)):
            times = met.get(pair, [])
            level = bisect_right(times, span.begin_s + least)
            since = max(since, times[level - 1]) if level else since
        found[rank, at] = _split(spans, begins, found, rank, span, span.peer, since)
        met.setdefault((rank, span.peer), []).append(end)
    return found


def _split(
    spans: list[list[_Span]],
    begins: list[list[float]],
    known: dict[tuple[int, int], dict[_Root, float]],
    rank: int,
    wait: _Span,
    peer: int,
    since: float,
) -> dict[_Root, float]:
    """Shares of one wait: what the peer did longer than this rank since the two were level, and what it waited for."""
    ours: dict[tuple[str, str], float] = {}
    for _, span, seconds in _within(spans[rank], begins[rank], since, wait.begin_s):
        ours[_sort(span)] = ours.get(_sort(span), 0.0) + seconds
    theirs: dict[tuple[str, str], dict[_Root, float]] = {}
    weights: dict[_Root, float] = {}
    last: _Root = (peer, "work", action_kind(wait.action), None)
    for at, span, seconds in _within(spans[peer], begins[peer], since, wait.end_s):
        if span.cause == "waiting":
            for root, share in known.get((peer, at), {}).items():
                weights[root] = weights.get(root, 0.0) + share * seconds
            continue
        root = _root(peer, span)
        group = theirs.setdefault(_sort(span), {})
        group[root] = group.get(root, 0.0) + seconds
        last = root if span.cause == "work" else last
    for sort, group in theirs.items():
        total = sum(group.values())
        longer = max(total - ours.get(sort, 0.0), 0.0)
        for root, seconds in group.items():
            weights[root] = weights.get(root, 0.0) + longer * seconds / total
    return _normal(weights) or {last: 1.0}


def _normal(weights: dict[_Root, float]) -> dict[_Root, float]:
    """Shares that add up to 1, without crumbs."""
    total = sum(weights.values())
    kept = {root: weight for root, weight in weights.items() if weight > _CRUMB * total}
    total = sum(kept.values())
    return {root: weight / total for root, weight in kept.items()}


def _sort(span: _Span) -> tuple[str, str]:
    """What is compared with what: work of one kind, idle of one cause."""
    return span.cause, action_kind(span.action) if span.cause == "work" else ""


def _within(own: list[_Span], begins: list[float], since: float, until: float) -> Iterator[tuple[int, _Span, float]]:
    """The spans of a rank between two moments: place, span, and how many of its seconds lie there."""
    for at in range(max(bisect_right(begins, since) - 1, 0), len(own)):
        span = own[at]
        if span.begin_s >= until:
            return
        seconds = min(span.end_s, until) - max(span.begin_s, since)
        if seconds > 0:
            yield at, span, seconds


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
