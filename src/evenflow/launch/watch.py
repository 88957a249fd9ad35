"""Notices ranks that are alive and yet lost: silent ones by their heartbeats, stuck ones by what they begin.

A dead rank is noticed by its line's end, and a slow one by its steps; neither is a matter of waiting for so long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from evenflow.errors import RankLostError
from evenflow.launch.heartbeat import BEAT_S, Pulse
from evenflow.units import format_seconds

# Enough heartbeats that a machine short of processors for a moment misses one of them at least.
_STOPPED_AFTER_S = 12 * BEAT_S
_UNWATCHED_S = 1.0  # between two looks: by as much the watcher itself stood still, and saw nothing


@dataclass(frozen=True, slots=True)
class Patience:
    """How long ranks may show nothing before they are taken for lost.

    Attributes:
        silent_s: without a heartbeat. A process that the system says is stopped gets no more than a few of them, and
            one that it says waits for a disk gets any time: a page read from a slow one holds up every thread.
        stuck_s: without that any rank begins anything, while all of them are in steps.
    """

    silent_s: float
    stuck_s: float


UNHURRIED = Patience(silent_s=30.0, stuck_s=float("inf"))  # of jobs that say nothing of how long they take


class Watched(Protocol):
    """A rank as far as its watch needs it."""

    @property
    def who(self) -> str:
        """The rank, for messages."""

    @property
    def pulse(self) -> Pulse | None:
        """What it shows; None where it cannot be seen."""

    @property
    def stopped(self) -> bool:
        """Whether the system says that it is stopped."""

    @property
    def blocked(self) -> bool:
        """Whether the system says that it waits for a disk."""

    @property
    def leaving(self) -> bool:
        """Whether it has done what it was to do, or is known to have failed."""


class Watch:
    """Looks at the heartbeats of a job's ranks, again and again.

    Args:
        ranks: the ranks.
        clock: seconds that never go back.

    Attributes:
        patience: how long they may show nothing.
    """

    def __init__(self, ranks: Sequence[Watched], clock: Callable[[], float] = time.monotonic) -> None:
        self.patience = UNHURRIED
        self._ranks = ranks
        self._clock = clock
        self._looked = clock()
        self._beat: dict[int, tuple[int, float]] = {}  # heartbeats of each rank, and when they were last more
        self._begun: tuple[int, ...] = ()
        self._begun_at = self._looked

    def look(self) -> None:
        """Take in what the ranks show.

        Raises:
            RankLostError: one is silent, or all are stuck: who, since when, and in what.
        """
        now = self._clock()
        if now - self._looked > _UNWATCHED_S:  # whoever watches was stopped, or busy: nobody is to blame for that
            asleep = now - self._looked
            self._beat = {index: (beats, seen + asleep) for index, (beats, seen) in self._beat.items()}
            self._begun_at += asleep
        self._looked = now
        pulses = {index: rank.pulse for index, rank in enumerate(self._ranks) if not rank.leaving}
        seen = {index: pulse for index, pulse in pulses.items() if pulse is not None}
        for index, pulse in seen.items():
            self._listen(index, pulse, now)
        if len(seen) == len(self._ranks):
            self._check_moves(seen, now)

    def _listen(self, index: int, pulse: Pulse, now: float) -> None:
        beats, since = self._beat.get(index, (-1, now))
        if pulse.beats != beats:
            self._beat[index] = pulse.beats, now
            return
        rank, silent_s = self._ranks[index], now - since
        if silent_s < min(_STOPPED_AFTER_S, self.patience.silent_s):
            return
        stopped = rank.stopped
        if stopped or (silent_s > self.patience.silent_s and not rank.blocked):
            how = "is stopped (SIGSTOP) and" if stopped else "is"
            raise RankLostError(
                f"{rank.who} {how} silent: no heartbeat for {format_seconds(silent_s)}, {pulse.doing}; all ranks were "
                "ended"
            )

    def _check_moves(self, pulses: dict[int, Pulse], now: float) -> None:
        begun = tuple(pulse.begun for pulse in pulses.values())
        in_steps = all(pulse.timed for pulse in pulses.values())
        if begun != self._begun or not in_steps:
            self._begun, self._begun_at = begun, now
            return
        stuck_s = now - self._begun_at
        if stuck_s <= self.patience.stuck_s:
            return
        # Whoever waits for a peer waits for one that does not.
        to_blame = {index: pulse for index, pulse in pulses.items() if not pulse.waits} or pulses
        if any(self._ranks[index].blocked for index in to_blame):
            return  # for as long as transfers may take: they have a limit of their own
        names = "; ".join(f"{self._ranks[index].who} {pulse.doing}" for index, pulse in to_blame.items())
        raise RankLostError(
            f"stuck: no rank has begun anything for {format_seconds(stuck_s)}, more than the "
            f"{format_seconds(self.patience.stuck_s)} that the plan's step allows: {names}; all ranks were ended"
        )
