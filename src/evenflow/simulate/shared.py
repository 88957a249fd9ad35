"""More ranks than processors: those that compute at the same time share them equally (processor sharing).

With c processors and k > c ranks computing, each goes on at c / k of its own speed, so time is walked from
event to event: somebody finishes computing, or something that a rank waits for arrives.
"""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.program import Action
from evenflow.simulate.state import StepState

_SAME = 1e-12  # moments closer than this, relative to their size, count as one: floats cannot tell them apart


@dataclass(slots=True)
class _Computing:
    """A rank's action under way: since when, and its seconds still to go on a processor of its own."""

    action: Action
    start: float
    left: float


def play_shared(state: StepState, processors: int) -> None:
    """Advance all ranks to their ends, at most `processors` of them at full speed."""
    now = min(state.begin)
    computing: dict[int, _Computing] = {}
    while True:
        arrivals = _start_what_can(state, now, computing)
        if not computing and not arrivals:
            return  # all done, or all stuck: the caller tells which
        speed = min(1.0, processors / len(computing)) if computing else 1.0
        ends = [now + own.left / speed for own in computing.values()]
        then = min([*ends, *arrivals])
        for (rank, own), end in zip(list(computing.items()), ends, strict=True):
            own.left -= (then - now) * speed
            if _reached(end, then):
                del computing[rank]
                state.take(own.action, rank, own.start, then)
        now = then


def _start_what_can(state: StepState, now: float, computing: dict[int, _Computing]) -> list[float]:
    """Let every rank that does not compute take what it can take now; returns the moments that others wait for."""
    arrivals: dict[int, float] = {}
    moved = True
    while moved:
        moved = False
        for rank in range(len(state.program.ranks)):
            arrivals.pop(rank, None)
            while rank not in computing and (action := state.next_action(rank)) is not None:
                start = state.ready_at(action, rank)
                if start is None:
                    break
                if not _reached(start, now):
                    arrivals[rank] = start
                    break
                moved = True
                seconds = state.seconds(action, rank)
                if seconds > 0:
                    computing[rank] = _Computing(action, now, seconds)
                else:
                    state.take(action, rank, now, now)
    return list(arrivals.values())


def _reached(moment: float, now: float) -> bool:
    return moment <= now + _SAME * max(1.0, abs(now))
