"""Whom the watch takes for lost, and whom it does not: by a made-up clock and made-up pulses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from evenflow.errors import RankLostError
from evenflow.launch import Heartbeat, Patience, action_note
from evenflow.launch.heartbeat import Page, Pulse
from evenflow.launch.watch import Watch


@dataclass
class Rank:
    who: str
    pulse: Pulse | None
    stopped: bool = False
    blocked: bool = False
    leaving: bool = False


class Job:
    """Two ranks in a step, looked at every fifth of a second."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ranks = [Rank(f"rank {n}", Pulse(1, 1, n == 1, True, "in step 3", f"{n}F0")) for n in range(2)]
        self.watch = Watch(self.ranks, lambda: self.now)
        self.watch.patience = Patience(silent_s=5.0, stuck_s=10.0)

    def wait(self, seconds: float, beat: tuple[int, ...] = (0, 1), begin: tuple[int, ...] = (0, 1)) -> None:
        for _ in range(round(seconds / 0.2)):
            self.now += 0.2
            for number, rank in enumerate(self.ranks):
                assert rank.pulse is not None
                beats, begun = rank.pulse.beats + (number in beat), rank.pulse.begun + (number in begin)
                rank.pulse = replace(rank.pulse, beats=beats, begun=begun)
            self.watch.look()


def test_who_beats_and_begins_is_left_alone() -> None:
    Job().wait(100)


def test_a_silent_rank_is_named_after_the_patience_and_not_before() -> None:
    job = Job()
    job.wait(4.8, beat=(1,))
    with pytest.raises(RankLostError, match=r"^rank 0 is silent: no heartbeat for 5\.\d+ s, in step 3, at 0F0"):
        job.wait(1, beat=(1,))


def test_a_stopped_rank_needs_no_such_patience() -> None:
    job = Job()
    job.ranks[1].stopped = True
    job.watch.patience = Patience(silent_s=500.0, stuck_s=1000.0)
    with pytest.raises(RankLostError, match=r"^rank 1 is stopped \(SIGSTOP\) and silent: .* waiting for 1F0"):
        job.wait(3.6, beat=(0,))


def test_a_rank_that_waits_for_a_disk_is_not_to_blame() -> None:
    job = Job()
    job.ranks[0].blocked = True
    job.wait(60, beat=(1,), begin=())
    job.ranks[0].blocked = False
    with pytest.raises(RankLostError, match=r"^rank 0 is silent"):
        job.wait(0.4, beat=(1,), begin=())


def test_stuck_ranks_are_not_those_that_wait() -> None:
    job = Job()
    job.wait(9.8, begin=())
    with pytest.raises(RankLostError, match=r"^stuck: .*: rank 0 in step 3, at 0F0; all"):
        job.wait(1, begin=())


def test_one_rank_that_begins_something_is_enough() -> None:
    Job().wait(60, begin=(1,))


def test_what_the_plan_does_not_time_is_never_stuck() -> None:
    job = Job()
    assert job.ranks[0].pulse is not None
    job.ranks[0].pulse = replace(job.ranks[0].pulse, timed=False, phase="saving its state", action="")
    job.wait(60, begin=())


def test_whoever_watches_and_slept_blames_nobody() -> None:
    job = Job()
    job.wait(4, beat=(), begin=())
    job.now += 3600
    job.wait(0.8, beat=(), begin=())
    job.wait(20)


def test_ranks_that_leave_are_not_missed() -> None:
    job = Job()
    job.ranks[0].leaving = True
    job.wait(60, beat=(1,))


def test_a_page_shows_what_its_ranks_note() -> None:
    page = Page(3)
    first, last = Heartbeat(page.descriptor, 0), Heartbeat(page.descriptor, 2)
    page.shared()
    assert page.read(1) == Pulse(0, 0, False, False, "", "")
    first.phase("in step 12", timed=True)
    first.takes(action_note("1RECV_F3", waits=True))
    last.phase("é" * 90, timed=False)  # longer than there is room for
    last.start()
    assert page.read(0) == Pulse(0, 2, True, True, "in step 12", "1RECV_F3")
    assert page.read(0).doing == "in step 12, waiting for 1RECV_F3"
    first.has_input()
    assert page.read(0).doing == "in step 12, at 1RECV_F3"
    assert page.read(2).phase.startswith("é" * 30)
    assert page.read(2).beats == 1
    assert page.read(1) == Pulse(0, 0, False, False, "", "")
