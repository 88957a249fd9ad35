"""The critical path of a step: the chain of actions and transfers without slack that it lasts as long as.

It is walked backwards from the last action to end (Kelley and Walker, Critical-path planning and scheduling, 1959):
what an action had to wait for comes before it, on another rank if its tensor arrived last, else on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evenflow.program import Action
from evenflow.timeline.idle import Reasons, reasons
from evenflow.timeline.timeline import BUSY, OPTIMIZER, Timeline

PathCause = Literal["busy", "optimizer", "transfer", "reduction", "overhead"]
PATH_CAUSES: tuple[PathCause, ...] = ("busy", "optimizer", "transfer", "reduction", "overhead")


@dataclass(frozen=True, slots=True)
class PathPart:
    """One stretch of the critical path, in seconds on the timeline's clock.

    Attributes:
        rank: whose action it is; of a transfer, the rank that it arrives at.
        action: the action, or the one that was held up.
        cause: what the stretch went into.
        start_s: when it began.
        end_s: when it ended: where the next part begins.
    """

    rank: int
    action: Action
    cause: PathCause
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.end_s - self.start_s


def critical_path(timeline: Timeline) -> tuple[PathPart, ...]:
    """The path from the begin of a rank's step to the last action's end, without holes.

    Ranks begin a step where they left the one before, which is not at one moment: the path may be longer or shorter
    than the step by how far those are apart.
    """
    why = reasons(timeline)
    ranks = why.rank.tolist()
    start, end, before = why.start.tolist(), why.end.tolist(), why.before.tolist()
    waited, rest, maker, until = why.waited.tolist(), why.rest.tolist(), why.maker.tolist(), why.until.tolist()
    actions = [action for own in timeline.program.ranks for action in own]
    first = {int(row) for row in timeline.program.table.begins[:-1]}
    is_measured = timeline.origin == "measured"
    least = 1e-9 * timeline.step_s
    parts: list[PathPart] = []

    def add(row: int, cause: PathCause, begin: float, stop: float) -> None:
        if stop - begin > 0:
            parts.append(PathPart(ranks[row], actions[row], cause, begin, stop))

    row = max(range(len(end)), key=end.__getitem__)
    now = end[row]
    for _ in range(2 * len(end)):
        works = type(actions[row]) in BUSY or type(actions[row]) in OPTIMIZER
        if works:
            add(row, "busy" if type(actions[row]) in BUSY else "optimizer", start[row], now)
            now = min(now, start[row])
        came = until[row]
        # A measured gap after a tensor that was long there is the rank's own doing, whatever it is called.
        arrives = rest[row] > (0.5 * (now - came) if is_measured else least)
        is_apart = maker[row] >= 0 and ranks[maker[row]] != ranks[row] and came < now + least
        if is_apart and (waited[row] > least or arrives):
            add(row, "transfer" if type(actions[row]) not in OPTIMIZER else "reduction", min(came, now), now)
            now, row = min(came, now), maker[row]
            continue
        add(row, _own(why, row, works), before[row], now)
        now = min(now, before[row])
        if row in first:
            break
        row -= 1
    return tuple(reversed(parts))


def _own(why: Reasons, row: int, works: bool) -> PathCause:
    """What a rank's own time before an action went into."""
    return "reduction" if works and why.is_reduction[row] and why.rest[row] > 0 else "overhead"


def path_seconds(path: Sequence[PathPart], ranks: int) -> tuple[dict[PathCause, float], ...]:
    """Seconds of the path on each rank, by what they went into."""
    found = tuple(dict.fromkeys(PATH_CAUSES, 0.0) for _ in range(ranks))
    for part in path:
        found[part.rank][part.cause] += part.seconds
    return found
