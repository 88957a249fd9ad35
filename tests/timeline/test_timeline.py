"""Why: people act on what a rank is said to wait for, so seconds must add up and name the right rank."""

from __future__ import annotations

from random import Random

import pytest

from evenflow.cost import LinkCost, RankCost, StageCost
from evenflow.errors import ProgramError
from evenflow.program import (
    SCHEDULES,
    Forward,
    InputBackward,
    Norm,
    ReceiveForward,
    ReduceTied,
    ReleaseForward,
    Step,
    action_text,
    build_program,
    evaluation_program,
    receive_buffers,
)
from evenflow.simulate import simulate
from evenflow.timeline import Figure, RankTimeline, Timeline, compare, idle_by_cause, waits
from tests.property.cases import (
    NO_MEMORY,
    all_splits,
    hardware_of,
    program_of,
    random_costs,
    random_model,
    split_hardware,
)


def _simulated(schedule, stages, microbatches, link=None, output_bytes=0, ranks=None, reduce_s=0.0):
    program = build_program(schedule, tuple(range(len(stages))), microbatches)
    more = {"ranks": ranks} if ranks else {}
    return simulate(program, hardware_of(program, stages, link, output_bytes, reduce_s=reduce_s, **more))


def _cost(forward_s, backward_s):
    return StageCost(forward_s, backward_s, backward_s / 2, backward_s / 2)


def _random_timeline(seed, with_link=True):
    random = Random(seed)
    ranks, microbatches = random.randint(1, 4), random.choice([1, 2, 3, 6, 9])
    program = build_program(random.choice(list(SCHEDULES)), ranks, microbatches)
    layers = program.stages + random.randint(0, 2)
    split = random.choice(list(all_splits(layers, program.stages)))
    costs = random_costs(random, layers, with_link=with_link)
    return simulate(program, split_hardware(program, split, costs, random_model(random, layers)))


@pytest.mark.parametrize("seed", range(100))
def test_every_second_of_every_rank_has_one_name(seed):
    timeline = _random_timeline(seed)
    for own, found, causes in zip(timeline.ranks, waits(timeline), idle_by_cause(timeline), strict=True):
        assert all(wait.seconds > 0 for wait in found)
        assert all((wait.peer is None) == (wait.cause != "waiting") for wait in found)
        assert own.busy_s + own.optimizer_s + sum(wait.seconds for wait in found) == pytest.approx(own.wall_s)
        assert sum(causes.values()) == pytest.approx(own.idle_s, abs=1e-9)
        assert own.wall_s == pytest.approx(timeline.step_s)
    assert 0 <= timeline.idle_fraction < 1
    assert timeline.idle_fraction == pytest.approx(
        sum(own.idle_s for own in timeline.ranks) / sum(own.wall_s for own in timeline.ranks), abs=1e-12
    )


@pytest.mark.parametrize("seed", range(60))
def test_where_transfers_are_free_nobody_waits_for_one(seed):
    """What remains is a rank waiting for a rank, also where RELEASE holds up a sender that is ahead."""
    timeline = _random_timeline(seed, with_link=False)
    for causes in idle_by_cause(timeline):
        assert causes.get("transfer", 0.0) == pytest.approx(0.0, abs=1e-9)
        assert causes.get("reduction", 0.0) == pytest.approx(0.0, abs=1e-9)


def test_a_sender_that_a_slow_receiver_holds_up_waits_for_that_rank():
    """GPipe onto a slow rank 1: RELEASE_F4 holds rank 0 until rank 1 asks for microbatch 4; transfers take no time."""
    timeline = _simulated("gpipe", [_cost(1.0, 1.0), _cost(10.0, 1.0)], 10)
    assert set(idle_by_cause(timeline)[0]) == {"waiting for rank 1"}


@pytest.mark.parametrize(("schedule", "slow_waits_s"), [("1f1b", 3.0), ("gpipe", 3.0), ("zb-h1", 1.0), ("zb-2p", 1.0)])
def test_a_slow_rank_is_the_one_waited_for(schedule, slow_waits_s):
    """Rank 1 of 3 takes thrice as long as the others: they wait for it, it waits for the first tensor."""
    stages = [_cost(1.0, 2.0), _cost(3.0, 6.0), _cost(1.0, 2.0)]
    timeline = _simulated(schedule, stages, 12)
    first, slow, last = idle_by_cause(timeline)
    assert next(iter(first)) == "waiting for rank 1"
    assert next(iter(last)) == "waiting for rank 1"
    assert first["waiting for rank 1"] > 0.5 * timeline.ranks[0].wall_s
    # F0 of rank 0; its last backward, for the norm, where that is not its own weight half's time as well.
    assert slow["waiting for rank 0"] == pytest.approx(slow_waits_s)
    assert timeline.ranks[1].idle_s < 0.15 * timeline.ranks[1].wall_s


def test_a_gap_is_split_where_the_peer_was_done():
    """Rank 1's first input is made at 2 s and arrives 0.5 s later."""
    timeline = _simulated("1f1b", [_cost(2.0, 1.0), _cost(1.0, 1.0)], 1, LinkCost(0.5, float("inf")))
    first = [wait for wait in waits(timeline)[1] if wait.action == Forward(1, 0)]
    assert [(wait.cause, wait.peer, wait.seconds) for wait in first] == [
        ("waiting", 0, pytest.approx(2.0)),
        ("transfer", None, pytest.approx(0.5)),
    ]


def _first_wait(timeline, rank, token):
    """What held up an action first: cause, peer, the peer's action, seconds."""
    wait = next(wait for wait in waits(timeline)[rank] if action_text(wait.action) == token)
    return wait.cause, wait.peer, wait.peer_action and action_text(wait.peer_action), pytest.approx(wait.seconds)


def test_who_is_waited_for_is_named_with_what_it_does():
    """Two stages on each rank, rank 1 slow, one microbatch: F 0-1, 1-4, 4-5, 5-8, then backwards of twice that."""
    program = build_program("zb-v", 2, 1)
    timeline = simulate(program, hardware_of(program, [_cost(1.0, 2.0), *[_cost(3.0, 6.0)] * 2, _cost(1.0, 2.0)]))
    assert _first_wait(timeline, 1, "1F0") == ("waiting", 0, "0F0", 1.0)
    assert _first_wait(timeline, 0, "3F0") == ("waiting", 1, "2F0", 6.0)
    # I of stage 3 ends at 9; its W, 9-10, is work; rank 1's I of stages 2 and 1 take 3 s each and end at 15.
    assert _first_wait(timeline, 1, "2I0") == ("waiting", 0, "3I0", 2.0)
    assert _first_wait(timeline, 0, "0I0") == ("waiting", 1, "1I0", 5.0)
    assert not [wait for wait in waits(timeline)[1] if wait.action in (Forward(2, 0), InputBackward(1, 0))]


def test_a_release_waits_for_the_receive_and_then_for_the_transfer():
    """Rank 1 asks for the second output only at 4; a transfer takes 2 s; rank 0 stands in RELEASE from 2 to 6."""
    text = (
        "0F0 0SEND_F0 0F1 0SEND_F1 0RELEASE_F1 0RELEASE_F0 0RECV_B0 0RECV_B1 0B0 0B1 NORM STEP\n"
        "1RECV_F0 1F0 1RECV_F1 1F1 1B0 1SEND_B0 1B1 1SEND_B1 1RELEASE_B0 1RELEASE_B1 NORM STEP\n"
    )
    program = program_of(text, (0, 1), 2)
    timeline = simulate(program, hardware_of(program, [_cost(1.0, 1.0)] * 2, LinkCost(0.0, 1.0), 2))
    held = [wait for wait in waits(timeline)[0] if wait.action == ReleaseForward(0, 1)]
    assert [(wait.cause, wait.peer, wait.peer_action, wait.seconds) for wait in held] == [
        ("waiting", 1, ReceiveForward(1, 1), pytest.approx(2.0)),
        ("transfer", None, None, pytest.approx(2.0)),
    ]


def test_a_measured_release_waits_until_the_peer_begins_to_receive():
    """Rank 0 stands in RELEASE from 1 to 3; rank 1 posts its receive from 2.0 to 2.3."""
    text = "0F0 0SEND_F0 0RELEASE_F0 0RECV_B0 0B0 NORM STEP\n1RECV_F0 1F0 1B0 1SEND_B0 1RELEASE_B0 NORM STEP\n"
    program = program_of(text, (0, 1), 1)
    starts = ((0, 1, 1, 3, 7, 8, 8), (2, 3, 4, 6, 6, 7, 8))
    ends = ((1, 1, 3, 3, 8, 8, 8), (2.3, 4, 6, 6, 7, 7, 8))
    measured = [RankTimeline(0.0, 8.0, *columns, 0) for columns in zip(program.ranks, starts, ends, strict=True)]
    held = [wait for wait in waits(Timeline("measured", program, tuple(measured)))[0] if wait.peer_action]
    assert [(wait.peer_action, wait.seconds) for wait in held if wait.action == ReleaseForward(0, 0)] == [
        (ReceiveForward(1, 0), pytest.approx(1.0))
    ]


def test_a_norm_that_waits_for_its_ranks_reductions_is_held_up_by_them():
    """One rank, its gradients at 3, added over the replicas until 5."""
    program = build_program("1f1b", 1, 1, reduces=True)
    timeline = simulate(program, hardware_of(program, [_cost(1.0, 2.0)], reduce_grad_s=[2.0]))
    assert [(w.cause, w.action, w.seconds) for w in waits(timeline)[0]] == [("reduction", Norm(), pytest.approx(2.0))]
    assert idle_by_cause(timeline) == ({"reduction": pytest.approx(2.0)},)


def test_a_step_waits_for_the_slowest_norm_and_then_for_the_reduction():
    ranks = [RankCost(0.5, 1.0), RankCost(3.0, 1.0)]
    timeline = _simulated("1f1b", [_cost(1.0, 1.0)] * 2, 1, ranks=ranks, reduce_s=0.25)
    # Rank 0 ends its norm at 4.5, rank 1 at 6.
    assert [(w.cause, w.peer, w.seconds) for w in waits(timeline)[0] if w.action == Step()] == [
        ("waiting", 1, pytest.approx(1.5)),
        ("reduction", None, pytest.approx(0.25)),
    ]
    assert [(w.cause, w.peer, w.seconds) for w in waits(timeline)[1] if w.action == Step()] == [
        ("reduction", None, pytest.approx(0.25)),
    ]


def test_time_between_actions_that_nobody_caused_is_overhead():
    """A measured single rank: 0.1 s before its forward and 0.2 s before its norm."""
    program = build_program("1f1b", 1, 1)
    times = [(0.1, 1.1), (1.1, 3.1), (3.3, 3.4), (3.4, 3.9)]
    own = RankTimeline(0.0, 3.9, program.ranks[0], *map(tuple, zip(*times, strict=True)), 0)
    timeline = Timeline("measured", program, (own,))
    assert idle_by_cause(timeline)[0] == {"overhead": pytest.approx(0.3)}
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
        starts, ends = [], []
        for _ in actions:
            starts.append(clock + random.choice([0.0, random.uniform(0.0, 2.0)]))
            clock = starts[-1] + random.uniform(0.0, 1.0)
            ends.append(clock)
        ranks.append(RankTimeline(begin, clock, actions, tuple(starts), tuple(ends), 0))
    timeline = Timeline("measured", program, tuple(ranks))
    for own, found in zip(ranks, waits(timeline), strict=True):
        assert all(wait.seconds > -1e-12 for wait in found)
        assert own.busy_s + own.optimizer_s + sum(wait.seconds for wait in found) == pytest.approx(own.wall_s)


def test_an_evaluation_waits_for_inputs_and_for_the_last_rank():
    """Three ranks, two microbatches: rank 0 is done at 2, rank 1 at 3, rank 2 at 4."""
    program = evaluation_program((0, 1, 2), 2)
    timeline = simulate(program, hardware_of(program, [_cost(1.0, 2.0)] * 3))
    assert [own.idle_s for own in timeline.ranks] == pytest.approx([2.0, 2.0, 2.0])
    assert idle_by_cause(timeline) == (
        {"waiting for rank 2": pytest.approx(2.0)},
        {"waiting for rank 0": pytest.approx(1.0), "waiting for rank 2": pytest.approx(1.0)},
        {"waiting for rank 1": pytest.approx(2.0)},
    )


def test_imbalance_is_the_busiest_over_the_mean():
    timeline = _simulated("1f1b", [_cost(1.0, 2.0), _cost(1.0, 2.0), _cost(2.0, 4.0)], 4)
    assert [own.busy_s for own in timeline.ranks] == pytest.approx([12, 12, 24])
    assert timeline.imbalance == pytest.approx(24 / 16)


def test_ranks_wait_longest_cause_first():
    timeline = _simulated("1f1b", [_cost(1.0, 2.0)] * 3, 2, LinkCost(0.2, float("inf")))
    seconds = list(idle_by_cause(timeline)[1].values())
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
    predicted = _simulated("1f1b", [_cost(1.0, 2.0)] * 2, 2)
    measured = _simulated("1f1b", [_cost(1.0, 2.0), _cost(1.5, 2.0)], 2)
    comparison = compare(predicted, measured)
    assert [figure.error for figure in comparison.busy_s] == pytest.approx([0.0, 1 / 6])
    wrong = {(own.rank, own.action) for own in comparison.actions if abs(own.length.error) > 1e-9}
    assert wrong == {(1, Forward(1, 0)), (1, Forward(1, 1))}
    assert comparison.step_s == Figure(predicted.step_s, measured.step_s)
    assert Figure(2.0, 3.0).error == pytest.approx(0.5)


@pytest.mark.parametrize("other", [("1f1b", 2, 3), ("gpipe", 2, 4), ("1f1b", 3, 4)])
def test_timelines_of_different_programs_are_not_compared(other):
    schedule, p, m = other
    stages = [_cost(1.0, 2.0)]
    with pytest.raises(ProgramError, match="not of the same program"):
        compare(_simulated("1f1b", stages * 2, 4), _simulated(schedule, stages * p, m))


def test_memory_after_each_event_is_known():
    timeline = _simulated("1f1b", [_cost(1.0, 2.0)] * 2, 3, output_bytes=8)
    for rank, own in enumerate(timeline.ranks):
        assert len(own.memory) == len(own.events)
        assert max(own.memory) <= own.peak_bytes
        buffers = sum(receive_buffers(timeline.program, rank).values())
        assert own.memory[-1] == NO_MEMORY.state_bytes + 8 * buffers > 0


def test_a_norm_waits_for_the_rank_that_shares_its_weights_and_then_for_the_reduction():
    """F 1 s, B 2 s on each of two ranks, one microbatch: rank 1 is done at 4, rank 0 at 6; adding takes 1.5 s."""
    program = build_program("1f1b", 2, 1, tied=[(0, 1)])
    timeline = simulate(program, hardware_of(program, [_cost(1.0, 2.0)] * 2, reduce_tied_s=[1.5]))
    found = [[own for own in waited if isinstance(own.action, Norm)] for waited in waits(timeline)]
    assert [(own.cause, own.peer, own.peer_action, own.seconds) for own in found[1]] == [
        ("waiting", 0, ReduceTied(0), pytest.approx(2.0)),
        ("reduction", None, None, pytest.approx(1.5)),
    ]
    assert [(own.cause, own.seconds) for own in found[0]] == [("reduction", pytest.approx(1.5))]
    assert idle_by_cause(timeline)[0] == {"waiting for rank 1": pytest.approx(3.0), "reduction": pytest.approx(1.5)}
