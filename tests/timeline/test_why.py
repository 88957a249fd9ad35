"""Why: a rank that is slow by a known amount must be named, with that amount, and with what the step would gain."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from evenflow.cost import RankCost
from evenflow.program import Backward, Forward, InputBackward
from evenflow.search import each_faster, find_out, plan_program, reschedule, were_faster, were_on_time
from evenflow.search.hardware import plan_hardware
from evenflow.simulate import simulate
from evenflow.timeline import blames, critical_path, path_seconds, stragglers, waits
from tests.files.samples import sample_plan


def _slowed(plan, rank, speed):
    """The step with one rank slower, as if it had been measured."""
    speeds = [1.0] * len(plan.ranks)
    speeds[rank] = speed
    predicted = simulate(plan_program(plan), plan_hardware(plan))
    slow = simulate(plan_program(plan), replace(plan_hardware(plan), speeds=speeds))
    return predicted, replace(slow, origin="measured")


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_slow_rank_is_named_with_its_delay_and_the_step_without_it(ranks, rank):
    plan = sample_plan(ranks)
    predicted, measured = _slowed(plan, rank, 0.3)
    late, *others = stragglers(predicted, measured)
    delay = measured.ranks[rank].busy_s - predicted.ranks[rank].busy_s
    assert (late.rank, others) == (rank, [])
    assert late.late_s == pytest.approx(delay, rel=0.1)
    assert were_on_time(plan, predicted, measured, late).step_s == pytest.approx(predicted.step_s, rel=0.1)
    assert each_faster(plan, measured)[0].rank == rank
    assert path_seconds(critical_path(measured), ranks)[rank]["busy"] > 0.8 * measured.ranks[rank].busy_s


def test_a_faster_rank_is_what_a_simulation_of_it_says():
    plan = sample_plan()
    predicted, _ = _slowed(plan, 3, 1.0)
    _, faster = _slowed(plan, 3, 1.1)
    found = were_faster(plan, predicted, 3, 1.1)
    assert found.step_s == pytest.approx(faster.step_s)
    assert found.gain == pytest.approx(predicted.step_s / faster.step_s - 1)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_all_idle_goes_back_to_something_and_the_path_has_no_hole(ranks):
    for timeline in _slowed(sample_plan(ranks), ranks - 1, 0.7):
        for own, found in zip(timeline.ranks, blames(timeline), strict=True):
            idle = sum(one.seconds for one in found)
            assert own.busy_s + own.optimizer_s + idle == pytest.approx(own.wall_s)
            assert all(one.cause != "waiting" for one in found)
        path = critical_path(timeline)
        assert path[0].start_s == pytest.approx(timeline.ranks[path[0].rank].begin_s)
        assert path[-1].end_s == pytest.approx(max(own.end_s for own in timeline.ranks))
        assert all(one.end_s == pytest.approx(two.start_s) for one, two in pairwise(path))


def test_a_wait_for_a_rank_that_waits_is_followed():
    """Rank 2's first input waits for rank 1, which waits for rank 0: half of it goes back to rank 0."""
    predicted, _ = _slowed(sample_plan(), 0, 1.0)
    roots = {(one.rank, one.kind) for one in blames(predicted)[2]}
    assert {(0, "F"), (1, "F")} <= roots


@pytest.mark.parametrize("slow", [0, 2, 3])
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "zb-h1"])
def test_idle_goes_back_through_all_who_wait_to_the_rank_that_computes(schedule, slow):
    """Ranks wait for their neighbours alone; with one rank ten times as slow, that is whom all wait for in the end."""
    plan = sample_plan(4, 8)
    speeds = [1.0] * 4
    speeds[slow] = 0.1
    timeline = simulate(plan_program(reschedule(plan, schedule)), replace(plan_hardware(plan), speeds=speeds))
    for rank in {0, 1, 2, 3} - {slow}:
        found = blames(timeline)[rank]
        theirs = sum(one.seconds for one in found if (one.rank, one.cause) == (slow, "work"))
        assert theirs > 0.85 * timeline.ranks[rank].idle_s
        assert found[0].rank == slow
    far = 3 if slow < 2 else 0  # the rank that is furthest from it, which it never names as its peer
    peers = {wait.peer for wait in waits(timeline)[far] if isinstance(wait.action, (Forward, Backward, InputBackward))}
    assert slow not in peers - {None}


def test_a_straggler_is_late_in_some_of_its_actions_alone():
    """Taking its delay away is not making all of it faster: its forwards were late, its backwards not."""
    plan = sample_plan(4)
    predicted = simulate(plan_program(plan), plan_hardware(plan))
    stages = list(plan_hardware(plan).stages)
    stages[1] = replace(stages[1], forward_s=5 * stages[1].forward_s)
    slow = simulate(plan_program(plan), replace(plan_hardware(plan), stages=stages))
    findings = find_out(plan, predicted, replace(slow, origin="measured"), with_schedules=False)
    ((late, then),) = findings.late
    assert late.rank == 1
    assert late.late_s == pytest.approx(8 * 0.8 * stages[1].forward_s)
    assert then.step_s == pytest.approx(predicted.step_s, rel=0.01)


def test_a_slow_rank_far_away_is_to_blame_although_a_neighbour_works_meanwhile():
    """Rank 0 of 16 waits just while rank 1 does a backward that is as long as its own: that is not why it waits."""
    plan = sample_plan(16, 32, 16)
    stages = list(plan_hardware(plan).stages)
    even = [replace(own, forward_s=0.01, backward_s=0.02) for own in stages]
    slow = [*even[:15], replace(even[15], forward_s=0.02, backward_s=0.04)]
    delay = 32 * 0.03
    before, after = (
        simulate(plan_program(plan), replace(plan_hardware(plan), stages=those, ranks=[RankCost(1e-4, 1e-4)] * 16))
        for those in (even, slow)
    )
    for rank in (0, 7, 14):
        found = blames(after)[rank]
        assert found[0].rank == 15
        more = sum(one.seconds for one in found if one.rank == 15)
        less = sum(one.seconds for one in blames(before)[rank] if one.rank == 15)
        assert more - less == pytest.approx(delay, rel=0.2)  # some of what was no one's in particular is its now
