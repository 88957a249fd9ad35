"""Why: plans are chosen by what the simulator says, so it is held to what can be worked out on paper."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest

from evenflow.cost import LinkCost, Links, RankCost, StageMemory
from evenflow.errors import InputError, ProgramError
from evenflow.program import (
    SCHEDULES,
    Backward,
    Forward,
    Norm,
    ReceiveForward,
    ReleaseForward,
    Step,
    WeightBackward,
    action_text,
    build_program,
    even_work,
)
from evenflow.simulate import simulate, step_seconds
from tests.property.cases import NO_MEMORY, equal_stages, hardware_of, program_of

EQUAL = equal_stages(2, 1.0, 1.0)


def _plain(program, stages, link=None, output_bytes=0):
    """Simulate with no optimizer and, where no link is given, free transfers."""
    return simulate(program, hardware_of(program, stages, link, output_bytes))


def _spans(timeline, rank):
    return {action_text(event.action): (event.start_s, event.end_s) for event in timeline.ranks[rank].events}


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_a_single_rank_never_idles(schedule):
    program = build_program(schedule, 1, 6)
    stages = equal_stages(program.stages, 1.0, 2.5)
    timeline = simulate(program, hardware_of(program, stages, LinkCost(9.0, 1.0), 7, ranks=[RankCost(0.5, 4.0)]))
    assert timeline.ranks[0].idle_s == pytest.approx(0.0)
    assert timeline.step_s == pytest.approx(6 * 3.5 * program.stages + 4.5)


def test_transfers_add_what_they_should():
    """F 1 s, B 2 s, a transfer 0.1 s + 5 bytes / 10 bytes/s = 0.6 s, two ranks, two microbatches, by hand:

    rank 0  F0 0-1, F1 1-2                                        B0 5.2-7.2       B1 8.2-10.2
    rank 1          F0 1.6-2.6  B0 2.6-4.6  F1 4.6-5.6  B1 5.6-7.6
    """
    timeline = _plain(build_program("1f1b", 2, 2), equal_stages(2, 1.0, 2.0), LinkCost(0.1, 10.0), 5)
    first, second = _spans(timeline, 0), _spans(timeline, 1)
    for spans, expected in (
        (first, {"0F0": (0, 1), "0F1": (1, 2), "0B0": (5.2, 7.2), "0B1": (8.2, 10.2)}),
        (second, {"1F0": (1.6, 2.6), "1B0": (2.6, 4.6), "1F1": (4.6, 5.6), "1B1": (5.6, 7.6)}),
    ):
        for token, span in expected.items():
            assert spans[token] == pytest.approx(span), token
    assert timeline.step_s == pytest.approx(10.2)
    # Without transfers it is 9; one forward and one backward transfer stand in the way.
    assert _plain(build_program("1f1b", 2, 2), equal_stages(2, 1.0, 2.0)).step_s == pytest.approx(9.0)


def test_an_edge_carries_one_transfer_at_a_time():
    """Both outputs are ready by 2 and both receives are posted at 0, but a transfer takes 3 s of its wire.

    Rank 0 computes at 0-1 and 1-2. The edge carries the first from 1 to 4 and the second from 4 to 7.
    """
    text = (
        "0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0RECV_B1 0B0 0B1 0RELEASE_F0 0RELEASE_F1 NORM STEP\n"
        "1RECV_F0 1RECV_F1 1F0 1F1 1B0 1SEND_B0 1B1 1SEND_B1 1RELEASE_B0 1RELEASE_B1 NORM STEP\n"
    )
    timeline = _plain(program_of(text, (0, 1), 2), equal_stages(2, 1.0, 1.0), LinkCost(0.0, 1.0), 3)
    second = _spans(timeline, 1)
    assert second["1F0"] == pytest.approx((4.0, 5.0))
    assert second["1F1"] == pytest.approx((7.0, 8.0))
    # The two directions do not share an edge: gradients leave at 9 and 10 and queue only behind one another.
    assert _spans(timeline, 0)["0B0"] == pytest.approx((12.0, 13.0))
    assert _spans(timeline, 0)["0B1"] == pytest.approx((15.0, 16.0))


def test_a_transfer_starts_only_once_its_receive_is_posted():
    """Rank 1 posts its second receive after its first forward, at 11: a transfer of 2 s ends at 13."""
    text = (
        "0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0RECV_B1 0B0 0B1 0RELEASE_F0 0RELEASE_F1 NORM STEP\n"
        "1RECV_F0 1F0 1RECV_F1 1F1 1B0 1SEND_B0 1B1 1SEND_B1 1RELEASE_B0 1RELEASE_B1 NORM STEP\n"
    )
    stages = [*equal_stages(1, 1.0, 1.0), *equal_stages(1, 8.0, 1.0)]
    timeline = _plain(program_of(text, (0, 1), 2), stages, LinkCost(2.0, float("inf")))
    assert _spans(timeline, 1)["1F0"] == pytest.approx((3.0, 11.0))
    assert _spans(timeline, 1)["1F1"] == pytest.approx((13.0, 21.0))


def test_release_waits_for_its_transfer():
    """GPipe, a transfer of 5 s where 1 s was counted on: RELEASE_F0 before F2 holds rank 0 from 2 to 6, its end."""
    program = build_program("gpipe", 2, 3, replace(even_work((0, 1), 3), transfer_s=(1.0,)))
    timeline = _plain(program, equal_stages(2, 1.0, 1.0), LinkCost(5.0, float("inf")))
    first = _spans(timeline, 0)
    assert first["0RELEASE_F0"] == pytest.approx((2.0, 6.0))
    assert first["0F2"] == pytest.approx((6.0, 7.0))


def test_norms_meet_and_updates_follow_one_another_from_step_to_step():
    """Rank 1's norm ends last, combining takes 0.5 s; rank 0 has 3 s less to update and begins 3 s early."""
    program = build_program("1f1b", 2, 1)
    updates = [RankCost(0.25, 1.0), RankCost(6.0, 4.0)]
    timeline = simulate(program, hardware_of(program, equal_stages(2, 1.0, 1.0), ranks=updates, reduce_s=0.5))
    first, second = _spans(timeline, 0), _spans(timeline, 1)
    assert timeline.ranks[0].begin_s == -3.0
    assert timeline.ranks[1].begin_s == 0.0
    assert first["0F0"] == pytest.approx((-3.0, -2.0))
    assert second["1F0"] == pytest.approx((0.0, 1.0))  # its input was there at -2, but it was still updating
    assert second["NORM"] == pytest.approx((2.0, 8.0))
    assert first["STEP"] == pytest.approx((8.5, 9.5))
    assert second["STEP"] == pytest.approx((8.5, 12.5))
    assert timeline.ranks[0].wall_s == pytest.approx(timeline.ranks[1].wall_s)
    assert timeline.step_s == pytest.approx(12.5)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_peak_memory_of_saved_activations_is_what_is_in_flight(schedule):
    """Between I and W all is kept here, so that a microbatch is in flight from F to the end of its backward."""
    for p, m in [(1, 1), (2, 3), (3, 8), (4, 5)]:
        program = build_program(schedule, p, m)
        memory = [StageMemory(0, 40, 7, 7, 0, 0, 0, 0)] * program.stages
        timeline = simulate(program, hardware_of(program, equal_stages(program.stages, 1.0, 2.0), memory=memory))
        expected = []
        for rank, actions in enumerate(program.compute_order()):
            held = most = 0
            for action in actions:
                held += isinstance(action, Forward) - isinstance(action, Backward | WeightBackward)
                most = max(most, held)
            expected.append(40 * program.stage_rank.count(rank) + 7 * most)
        assert [rank.peak_bytes for rank in timeline.ranks] == expected


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_events_are_the_program_in_its_order(schedule):
    program = build_program(schedule, 3, 5)
    timeline = _plain(program, equal_stages(program.stages, 1.0, 2.0), LinkCost(0.3, 100.0), 20)
    assert timeline.program is program
    assert timeline.origin == "predicted"
    for own, actions in zip(timeline.ranks, program.ranks, strict=True):
        assert tuple(event.action for event in own.events) == actions
        assert own.events[-1].end_s == own.end_s
        for before, after in zip(own.events, own.events[1:], strict=False):
            assert before.start_s <= before.end_s <= after.start_s
    assert isinstance(program.ranks[0][-2], Norm)
    assert isinstance(program.ranks[0][-1], Step)


def test_ranks_that_wait_for_each_other_for_ever_are_named():
    """Each rank waits for the other's tensor: what verify refuses, the simulator refuses too."""
    text = (
        "0F0 0SEND_F0 0RECV_B0 0B0 0F1 0SEND_F1 0RECV_B1 0B1 0RELEASE_F0 0RELEASE_F1 NORM STEP\n"
        "1RECV_F0 1F0 1RECV_F1 1F1 1B0 1SEND_B0 1B1 1SEND_B1 1RELEASE_B0 1RELEASE_B1 NORM STEP\n"
    )
    with pytest.raises(ProgramError, match=r"deadlock: rank 0 at 0B0, rank 1 at 1F1"):
        _plain(program_of(text, (0, 1), 2), equal_stages(2, 1.0, 1.0))


def test_a_release_that_nobody_receives_is_named():
    program = build_program("1f1b", 2, 1)
    first = tuple(program.ranks[0])
    second = tuple(action for action in program.ranks[1] if not isinstance(action, ReceiveForward | Forward))
    broken = type(program)(program.stage_rank, 1, (first, second))
    with pytest.raises(ProgramError, match="deadlock: rank 0 at 0RELEASE_F0, rank 1 at STEP"):
        _plain(broken, equal_stages(2, 1.0, 1.0))
    assert ReleaseForward(0, 0) in first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": [EQUAL[0]]}, "stages: there are 1; the program has 2 stages, so 2 would do"),
        ({"ranks": [RankCost(0.0, 0.0)] * 3}, "ranks: there are 3; the program has 2 ranks, so 2 would do"),
        ({"memory": [NO_MEMORY] * 3}, "memory: there are 3; the program has 2 stages, so 2 would do"),
        ({"speeds": [1.0]}, "speeds: there are 1; the program has 2 ranks, so 2 would do"),
        ({"speeds": [1.0, 0.0]}, "speeds: rank 1 has 0; more than 0 would do"),
        ({"reduce_grad_s": [1.0]}, "reduce_grad_s: there are 1; the program has 2 stages, so 2 would do"),
        (
            {"reduce_tied_s": [1.0]},
            "reduce_tied_s: there are 1; the program has 0 tied groups, so 0 would do",
        ),
        ({"at_once": 0}, "at_once: 0 ranks compute at once; 1 would be the least"),
        ({"links": LinkCost(0.0, 0.0)}, "links: 0 bytes a second carry nothing; more than 0 would do"),
        (
            {"links": Links(LinkCost(0.0, 1.0), between={(1, 0): LinkCost(0.0, 0.0)})},
            "links.between: rank 1 to rank 0: 0 bytes a second carry nothing; more than 0 would do",
        ),
        (
            {"links": Links(LinkCost(0.0, 1.0), shared=(frozenset({(0, 1), (1, 0)}), frozenset({(1, 0)})))},
            "links.shared: rank 1 to rank 0 is in two groups; an edge has one wire",
        ),
        (
            {"stages": [EQUAL[0], replace(EQUAL[1], weight_s=nan)]},
            "stages: stage 1: weight_s is nan seconds; a finite number, 0 or more, would do",
        ),
        (
            {"stages": [replace(EQUAL[0], forward_s=inf), EQUAL[1]]},
            "stages: stage 0: forward_s is inf seconds; a finite number, 0 or more, would do",
        ),
        (
            {"ranks": [RankCost(0.0, 0.0), RankCost(0.0, -0.5)]},
            "ranks: rank 1: optimizer_s is -0.5 seconds; a finite number, 0 or more, would do",
        ),
        (
            {"memory": [NO_MEMORY, replace(NO_MEMORY, input_bytes=-7)]},
            "memory: stage 1: input_bytes is -7 bytes; a finite number, 0 or more, would do",
        ),
        (
            {"reduce_grad_s": [0.0, nan]},
            "reduce_grad_s: stage 1 is nan seconds; a finite number, 0 or more, would do",
        ),
        ({"reduce_s": inf}, "reduce_s is inf seconds; a finite number, 0 or more, would do"),
        ({"overhead_s": -1.0}, "overhead_s is -1 seconds; a finite number, 0 or more, would do"),
        ({"overhead_s": nan}, "overhead_s is nan seconds; a finite number, 0 or more, would do"),
        ({"at_once": nan}, "at_once: nan ranks compute at once; 1 would be the least"),
        ({"links": LinkCost(-5.0, 1.0)}, "links: latency_s is -5 seconds; a finite number, 0 or more, would do"),
        ({"links": LinkCost(nan, 1.0)}, "links: latency_s is nan seconds; a finite number, 0 or more, would do"),
        ({"links": LinkCost(0.0, nan)}, "links: nan bytes a second carry nothing; more than 0 would do"),
        (
            {"links": Links(LinkCost(0.0, 1.0), between={(7, 1): LinkCost(0.0, 1.0)})},
            "links.between: rank 7 to rank 1: ranks run from 0 to 1",
        ),
        (
            {"links": Links(LinkCost(0.0, 1.0), shared=(frozenset({(0, 1), (0, 3)}),))},
            "links.shared: rank 0 to rank 3: ranks run from 0 to 1",
        ),
    ],
)
def test_hardware_that_cannot_run_the_program_is_refused_in_one_line(change, message):
    program = build_program("1f1b", 2, 2)
    good = hardware_of(program, EQUAL)
    for run in (simulate, step_seconds):
        with pytest.raises(InputError) as caught:
            run(program, replace(good, **change))
        assert str(caught.value) == message
