"""Why: people act on what a rank is said to wait for, so seconds must add up and name the right rank."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from evenflow.cost import LinkCost, MemoryModel, RankCost, StageCost
from evenflow.errors import ProgramError
from evenflow.program import SCHEDULES, Forward, Step, build_program
from evenflow.search import try_split
from evenflow.simulate import free_transfers, simulate
from evenflow.timeline import Event, Figure, RankTimeline, Timeline, compare, idle_by_cause, waits
from tests.property.cases import (
    NO_MEMORY,
    NO_RANK_COST,
    all_splits,
    boundary_memory,
    random_costs,
    random_model,
)


def _simulated(schedule, stages, microbatches, link=None, output_bytes=0, ranks=None, reduce_s=0.0):
    p = len(stages)
    return simulate(
        build_program(schedule, p, microbatches),
        stages,
        ranks or [NO_RANK_COST] * p,
        link or free_transfers(),
        boundary_memory(p, output_bytes),
        reduce_s,
    )


def _random_timeline(seed, with_link=True):
    random = Random(seed)
    layers = random.randint(2, 7)
    stages = random.randint(1, min(layers, 5))
    program = build_program(random.choice(list(SCHEDULES)), stages, random.choice([1, 2, 3, 6, 9]))
    split = random.choice(list(all_splits(layers, stages)))
    costs = random_costs(random, layers, with_link=with_link)
    return try_split(split, program, costs, MemoryModel(random_model(random, layers))).timeline


@pytest.mark.parametrize("seed", range(100))
def test_every_second_of_every_rank_has_one_name(seed):
    timeline = _random_timeline(seed)
    for rank, own in enumerate(timeline.ranks):
        found = waits(timeline, rank)
        assert all(wait.seconds > 0 for wait in found)
        assert all((wait.peer is None) == (wait.cause != "waiting") for wait in found)
        assert own.busy_s + own.optimizer_s + sum(wait.seconds for wait in found) == pytest.approx(own.wall_s)
        assert sum(idle_by_cause(timeline, rank).values()) == pytest.approx(own.idle_s, abs=1e-9)
        assert own.wall_s == pytest.approx(timeline.step_s)
    assert 0 <= timeline.idle_fraction < 1
    assert timeline.idle_fraction == pytest.approx(
        sum(own.idle_s for own in timeline.ranks) / sum(own.wall_s for own in timeline.ranks), abs=1e-12
    )


@pytest.mark.parametrize("seed", range(60))
def test_where_transfers_are_free_nobody_waits_for_one(seed):
    """What remains is a rank waiting for a rank, also where RELEASE holds up a sender that is ahead."""
    timeline = _random_timeline(seed, with_link=False)
    for rank in range(len(timeline.ranks)):
        causes = idle_by_cause(timeline, rank)
        assert causes.get("transfer", 0.0) == pytest.approx(0.0, abs=1e-9)
        assert causes.get("reduction", 0.0) == pytest.approx(0.0, abs=1e-9)


def test_a_sender_that_a_slow_receiver_holds_up_waits_for_that_rank():
    """GPipe onto a slow rank 1: RELEASE_F2 holds rank 0 until rank 1 asks for microbatch 2, at 11 s.

    Rank 0 computes F0..F3 until 4, waits for 7 s, computes F4, and so on; no transfer takes any time.
    """
    timeline = _simulated("gpipe", [StageCost(1.0, 1.0), StageCost(10.0, 1.0)], 6)
    assert set(idle_by_cause(timeline, 0)) == {"waiting for rank 1"}


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_a_slow_rank_is_the_one_waited_for(schedule):
    """Rank 1 of 3 takes thrice as long as the others: they wait for it, it waits for the first tensor."""
    stages = [StageCost(1.0, 2.0), StageCost(3.0, 6.0), StageCost(1.0, 2.0)]
    timeline = _simulated(schedule, stages, 6)
    first, slow, last = (idle_by_cause(timeline, rank) for rank in range(3))
    assert next(iter(first)) == "waiting for rank 1"
    assert next(iter(last)) == "waiting for rank 1"
    assert first["waiting for rank 1"] > 0.5 * timeline.ranks[0].wall_s
    assert slow["waiting for rank 0"] == pytest.approx(1.0 + 2.0)  # F0 of rank 0; its last backward, for the norm
    assert timeline.ranks[1].idle_s < 0.15 * timeline.ranks[1].wall_s


def test_a_gap_is_split_where_the_peer_was_done():
    """Rank 1's first input is made at 2 s and arrives 0.5 s later."""
    timeline = _simulated("1f1b", [StageCost(2.0, 1.0), StageCost(1.0, 1.0)], 1, LinkCost(0.5, float("inf")))
    first = [wait for wait in waits(timeline, 1) if wait.action == Forward(1, 0)]
    assert [(wait.cause, wait.peer, wait.seconds) for wait in first] == [
        ("waiting", 0, pytest.approx(2.0)),
        ("transfer", None, pytest.approx(0.5)),
    ]


def test_a_step_waits_for_the_slowest_norm_and_then_for_the_reduction():
    ranks = [RankCost(0.5, 1.0), RankCost(3.0, 1.0)]
    timeline = _simulated("1f1b", [StageCost(1.0, 1.0)] * 2, 1, ranks=ranks, reduce_s=0.25)
    # Rank 0 ends its norm at 4.5, rank 1 at 6.
    assert [(w.cause, w.peer, w.seconds) for w in waits(timeline, 0) if w.action == Step()] == [
        ("waiting", 1, pytest.approx(1.5)),
        ("reduction", None, pytest.approx(0.25)),
    ]
    assert [(w.cause, w.peer, w.seconds) for w in waits(timeline, 1) if w.action == Step()] == [
        ("reduction", None, pytest.approx(0.25)),
    ]


def test_time_between_actions_that_nobody_caused_is_overhead():
    """A measured single rank: 0.1 s before its forward and 0.2 s before its norm."""
    program = build_program("1f1b", 1, 1)
    times = [(0.1, 1.1), (1.1, 3.1), (3.3, 3.4), (3.4, 3.9)]
    events = tuple(Event(action, *span) for action, span in zip(program.ranks[0], times, strict=True))
    timeline = Timeline("measured", program, (RankTimeline(0.0, 3.9, events, 0),))
    assert idle_by_cause(timeline, 0) == {"overhead": pytest.approx(0.3)}
    assert timeline.ranks[0].busy_s == pytest.approx(3.0)
    assert timeline.ranks[0].optimizer_s == pytest.approx(0.6)
    assert timeline.idle_fraction == pytest.approx(0.3 / 3.9)


@pytest.mark.parametrize("seed", range(20))
def test_seconds_add_up_where_posting_takes_time_too(seed):
    """Measured ranks: every action takes a while, sends and receives too, and so does what lies between."""
    random = Random(seed)
    program = build_program(random.choice(list(SCHEDULES)), 3, 4)
    ranks = []
    for actions in program.ranks:
        clock = begin = random.uniform(-1.0, 0.0)
        events = []
        for action in actions:
            start = clock + random.choice([0.0, random.uniform(0.0, 2.0)])
            clock = start + random.uniform(0.0, 1.0)
            events.append(Event(action, start, clock))
        ranks.append(RankTimeline(begin, clock, tuple(events), 0))
    timeline = Timeline("measured", program, tuple(ranks))
    for rank, own in enumerate(ranks):
        found = waits(timeline, rank)
        assert all(wait.seconds > -1e-12 for wait in found)
        assert own.busy_s + own.optimizer_s + sum(wait.seconds for wait in found) == pytest.approx(own.wall_s)


def test_imbalance_is_the_busiest_over_the_mean():
    timeline = _simulated("1f1b", [StageCost(1.0, 2.0), StageCost(1.0, 2.0), StageCost(2.0, 4.0)], 4)
    assert [own.busy_s for own in timeline.ranks] == pytest.approx([12, 12, 24])
    assert timeline.imbalance == pytest.approx(24 / 16)


def test_ranks_wait_longest_cause_first():
    timeline = _simulated("1f1b", [StageCost(1.0, 2.0)] * 3, 2, LinkCost(0.2, float("inf")))
    seconds = list(idle_by_cause(timeline, 1).values())
    assert seconds == sorted(seconds, reverse=True)


def test_a_timeline_held_against_itself_has_no_error():
    timeline = _random_timeline(3)
    comparison = compare(timeline, timeline)
    figures = [
        comparison.step_s,
        comparison.idle_fraction,
        comparison.imbalance,
        *comparison.busy_s,
        *comparison.peak_bytes,
        *(difference.length for difference in comparison.actions),
    ]
    assert all(figure.error == 0.0 for figure in figures)
    assert len(comparison.actions) == sum(map(len, timeline.program.ranks))


def test_a_slower_rank_shows_in_its_own_actions_and_figures():
    predicted = _simulated("1f1b", [StageCost(1.0, 2.0)] * 2, 2)
    measured = _simulated("1f1b", [StageCost(1.0, 2.0), StageCost(1.5, 2.0)], 2)
    comparison = compare(predicted, measured)
    assert [figure.error for figure in comparison.busy_s] == pytest.approx([0.0, 1 / 6])
    wrong = {(own.rank, own.action) for own in comparison.actions if abs(own.length.error) > 1e-9}
    assert wrong == {(1, Forward(1, 0)), (1, Forward(1, 1))}
    assert comparison.step_s == Figure(predicted.step_s, measured.step_s)
    assert Figure(2.0, 3.0).error == pytest.approx(0.5)


@pytest.mark.parametrize("other", [("1f1b", 2, 3), ("gpipe", 2, 4), ("1f1b", 3, 4)])
def test_timelines_of_different_programs_are_not_compared(other):
    schedule, p, m = other
    stages = [StageCost(1.0, 2.0)]
    with pytest.raises(ProgramError, match="not of the same program"):
        compare(_simulated("1f1b", stages * 2, 4), _simulated(schedule, stages * p, m))


def test_memory_after_each_event_is_known():
    timeline = _simulated("1f1b", [StageCost(1.0, 2.0)] * 2, 3, output_bytes=8)
    for own in timeline.ranks:
        assert len(own.memory) == len(own.events)
        assert max(own.memory) <= own.peak_bytes
    assert replace(timeline, program=build_program("1f1b", 1, 3)).ranks[0].memory[-1] == NO_MEMORY.state_bytes
