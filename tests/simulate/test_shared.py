"""Ranks that share processors: closed forms of processor sharing, and nothing changes where nobody shares."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from evenflow.cost import LinkCost, Links, RankCost, StageCost
from evenflow.program import SCHEDULES, Forward, build_program, lower, place
from evenflow.simulate import simulate, step_seconds
from evenflow.timeline import Timeline
from tests.property.cases import hardware_of
from tests.property.strategies import random_order

BY_STAGE = [name for name, facts in SCHEDULES.items() if facts.stages_per_rank == 1]


def run(
    stages: list[tuple[float, float]],
    microbatches: int,
    at_once: int | None,
    schedule: str = "1f1b",
    link: LinkCost | None = None,
    update_s: float = 0.0,
) -> Timeline:
    """A step of stages of (forward, backward) seconds."""
    program = build_program(schedule, place("one", len(stages), len(stages)), microbatches)
    costs = [StageCost(forward_s, backward_s, 0.4 * backward_s, 0.6 * backward_s) for forward_s, backward_s in stages]
    updates = [RankCost(0.0, update_s)] * len(stages)
    return simulate(program, hardware_of(program, costs, link, ranks=updates, at_once=at_once))


@pytest.mark.parametrize("schedule", BY_STAGE)
@pytest.mark.parametrize("microbatches", [1, 3, 8])
def test_one_processor_does_all_work_in_turn(schedule: str, microbatches: int) -> None:
    stages = [(1.0, 2.0), (3.0, 1.0), (0.5, 0.25)]
    timeline = run(stages, microbatches, at_once=1, schedule=schedule)
    assert timeline.step_s == pytest.approx(microbatches * sum(map(sum, stages)))


@pytest.mark.parametrize("schedule", BY_STAGE)
def test_enough_processors_are_as_good_as_own_ones(schedule: str) -> None:
    stages = [(1.0, 2.0), (3.0, 1.0), (0.5, 0.25)]
    link = LinkCost(0.1, 1e9)
    own = run(stages, 5, at_once=None, schedule=schedule, link=link, update_s=0.3)
    assert run(stages, 5, at_once=3, schedule=schedule, link=link, update_s=0.3) == own


def test_the_shared_engine_agrees_with_the_other_where_nobody_has_to_share() -> None:
    """GPipe of two ranks in three: with the third stage free of work, two processors are enough."""
    stages = [(1.0, 2.0), (2.0, 1.0), (0.0, 0.0)]
    link = LinkCost(0.25, 1e9)
    shared, own = (run(stages, 4, at_once=at_once, link=link) for at_once in (2, None))
    assert shared.step_s == pytest.approx(own.step_s)
    for mine, other in zip(shared.ranks, own.ranks, strict=True):
        assert [event.end_s for event in mine.events] == pytest.approx([event.end_s for event in other.events])


def test_the_engines_agree_where_actions_and_transfers_take_no_time() -> None:
    """A wire that only one edge uses is shared with nobody. What one action frees at once is not begun twice."""
    for seed in range(60):
        random = Random(seed)
        stage_rank = place(random.choice(["loop", "v"]), random.randint(2, 3), random.randint(3, 5))
        order = random_order(random, stage_rank, 3, together=True)
        program = lower(order, stage_rank, 3)
        halves = [(random.choice([0.0, 1.0]), random.choice([0.0, 1.0, 0.5])) for _ in stage_rank]
        costs = [StageCost(random.choice([0.0, 1.0, 2.0]), half + weight, half, weight) for half, weight in halves]
        own = hardware_of(program, costs, Links(LinkCost(random.choice([0.0, 0.5]), 1e9)))
        wire = Links(own.links.usual, shared=(frozenset({(0, 1)}),))
        assert step_seconds(program, replace(own, links=wire)) == pytest.approx(step_seconds(program, own)), seed


def test_two_ranks_on_one_processor_halve_each_other() -> None:
    """From 1 s on, F1 of the first and F0 of the second share it: each of one second ends at 3 s."""
    timeline = run([(1.0, 1.0), (1.0, 1.0)], 2, at_once=1)
    spans = {event.action: (event.start_s, event.end_s) for rank in timeline.ranks for event in rank.events}
    assert spans[Forward(0, 0)] == pytest.approx((0.0, 1.0))
    assert spans[Forward(0, 1)] == pytest.approx((1.0, 3.0))
    assert spans[Forward(1, 0)] == pytest.approx((1.0, 3.0))


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_never_faster_than_the_work_that_the_processors_share(at_once: int) -> None:
    stages = [(1.0, 2.0), (3.0, 1.0), (0.5, 0.25), (2.0, 2.0)]
    timeline = run(stages, 6, at_once)
    assert timeline.step_s >= 6 * sum(map(sum, stages)) / at_once - 1e-9
    assert timeline.step_s >= run(stages, 6, None).step_s - 1e-9


@pytest.mark.parametrize("scale", [1e-5, 1e5, 1e9])
def test_any_length_of_step_comes_to_an_end(scale: float) -> None:
    stages = [(0.1 * scale * (stage + 1), 0.23 * scale) for stage in range(5)]
    timeline = run(stages, 7, at_once=2, link=LinkCost(0.01, 1e9))
    assert timeline.step_s >= 7 * sum(map(sum, stages)) / 2 * (1 - 1e-9)


def test_updates_that_share_processors_end_where_the_next_step_begins() -> None:
    """Updates of 1, 2 and 6 s on one processor end 3, 5 and 9 s after they begin: so far apart ranks begin, too.

    The step ends for all when it ends for the last: everybody's wall is the time between two ends of the last.
    """
    program = build_program("1f1b", 3, 2)
    stages = [StageCost(1.0, 2.0, 1.0, 1.0)] * 3
    updates = [RankCost(0.0, seconds) for seconds in (1.0, 2.0, 6.0)]
    timeline = simulate(program, hardware_of(program, stages, ranks=updates, at_once=1))
    assert [rank.begin_s for rank in timeline.ranks] == pytest.approx([-6.0, -4.0, 0.0])
    assert [rank.wall_s for rank in timeline.ranks] == pytest.approx([timeline.step_s] * 3)
    assert timeline.ranks[2].end_s == pytest.approx(timeline.step_s)
    for crowded in (2, 3, None):
        timeline = simulate(program, hardware_of(program, stages, ranks=updates, at_once=crowded))
        assert [rank.wall_s for rank in timeline.ranks] == pytest.approx([timeline.step_s] * 3)
