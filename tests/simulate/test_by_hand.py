"""Why: each thing that hardware can be is worked out once on paper, so that a figure that moves has a reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evenflow.cost import LinkCost, Links, RankCost
from evenflow.program import action_text, build_program, evaluation_program
from evenflow.simulate import simulate, step_seconds
from evenflow.timeline import idle_by_cause
from tests.property.cases import equal_stages, hardware_of, program_of

INSTANT = float("inf")
# One microbatch through two ranks and back; F takes 1 s and B 2 s unless a test says otherwise.
THERE_AND_BACK = program_of(
    "0F0 0SEND_F0 0RECV_B0 0B0 0RELEASE_F0 NORM STEP\n1RECV_F0 1F0 1B0 1SEND_B0 1RELEASE_B0 NORM STEP\n", (0, 1), 1
)


def _run(program, output_bytes=0, links=None, **more):
    hardware = hardware_of(program, equal_stages(program.stages, 1.0, 2.0), links, output_bytes, **more)
    timeline = simulate(program, hardware)
    assert step_seconds(program, hardware) == pytest.approx(timeline.step_s)
    spans = {}
    for rank, own in enumerate(timeline.ranks):
        for event in own.events:
            spans[rank, action_text(event.action)] = (round(event.start_s, 9), round(event.end_s, 9))
    return timeline, spans


def _two_ranks(**more):
    """1F1B: rank 0  F0 0-1  F1 1-2            B0 4-6        B1 7-9
    rank 1          F0 1-2  B0 2-4  F1 4-5  B1 5-7
    """
    return _run(build_program("1f1b", 2, 2, **more.pop("program", {})), **more)


@pytest.mark.parametrize(
    ("reduce_grad_s", "step_s"),
    [
        pytest.param([0.0, 0.0], 9.0, id="free"),
        pytest.param([0.0, 2.0], 9.0, id="rank-1-is-done-at-7-and-reduces-behind-rank-0s-backward"),
        pytest.param([0.0, 3.0], 10.0, id="no-longer-hidden"),
        pytest.param([1.5, 0.0], 10.5, id="rank-0-has-nothing-to-hide-it-behind"),
        pytest.param([1.5, 2.0], 10.5, id="ranks-reduce-side-by-side"),
    ],
)
def test_a_reduction_over_replicas_starts_at_the_last_gradient(reduce_grad_s, step_s):
    timeline, _ = _two_ranks(program={"reduces": True}, reduce_grad_s=reduce_grad_s)
    assert timeline.step_s == pytest.approx(step_s)


@pytest.mark.parametrize(("seconds", "step_s"), [(1.5, 7.5), (2.0, 8.0), (3.0, 10.0)])
def test_a_rank_reduces_one_stage_while_it_computes_another_and_one_at_a_time(seconds, step_s):
    """Two stages on one rank: F 0-1, F 1-2, B of stage 1 2-4, B of stage 0 4-6.

    Stage 1's reduction starts at 4; stage 0's at 6, or when that one has ended.
    """
    timeline, spans = _run(build_program("gpipe", (0, 0), 1, reduces=True), reduce_grad_s=[seconds, seconds])
    assert timeline.step_s == pytest.approx(step_s)
    assert spans[0, "1REDUCE_GRAD"] == (4.0, 4.0)  # started, in no time of its own
    assert timeline.ranks[0].busy_s == pytest.approx(6.0)


def test_gradients_of_tied_weights_are_added_when_the_last_rank_has_its_own():
    """Rank 1 has its gradients at 7, rank 0 at 9; they add them from 9 to 10, and only then over the replicas."""
    timeline, spans = _two_ranks(program={"tied": [(0, 1)]}, reduce_tied_s=[1.0])
    assert (10.0, 10.0) == spans[0, "NORM"] == spans[1, "NORM"]
    assert timeline.step_s == pytest.approx(10.0)
    both = {"tied": [(0, 1)], "reduces": True}
    timeline, spans = _two_ranks(program=both, reduce_tied_s=[1.0], reduce_grad_s=[0.5, 2.0])
    assert spans[0, "NORM"] == (10.5, 10.5)
    assert spans[1, "NORM"] == (12.0, 12.0)
    assert timeline.step_s == pytest.approx(12.0)


def test_who_is_not_tied_does_not_wait_for_those_who_are():
    """Three ranks, one microbatch: gradients at 5, 7 and 9; rank 1 has nothing to add and waits only in STEP."""
    program = build_program("1f1b", 3, 1, tied=[(0, 2)])
    _, spans = _run(program, reduce_tied_s=[1.0])
    assert [spans[1, "NORM"], spans[0, "NORM"], spans[2, "NORM"]] == [(7.0, 7.0), (10.0, 10.0), (10.0, 10.0)]
    assert spans[1, "STEP"] == (10.0, 10.0)


def test_stages_of_one_rank_that_are_tied_to_another_ranks_are_added_once():
    """Stages 0 and 2 are on rank 0 and tied to stage 1: one addition, from when all three have their gradients."""
    program = build_program("gpipe", (0, 1, 0), 1, tied=[(0, 1, 2)])
    timeline, spans = _run(program, reduce_tied_s=[1.0])
    assert spans[0, "NORM"] != (9.0, 9.0)
    assert (10.0, 10.0) == spans[0, "NORM"] == spans[1, "NORM"]
    assert timeline.step_s == pytest.approx(10.0)


def test_reductions_of_several_stages_do_not_hold_up_what_others_wait_for():
    """Rank 1's stage 3 is tied to rank 0's stage 0 and is done first; its stage 1 must still go on, for rank 0."""
    program = build_program("gpipe", (0, 1, 0, 1), 1, reduces=True, tied=[(0, 3)])
    timeline, spans = _run(program, reduce_tied_s=[1.0], reduce_grad_s=[0.5, 0.5, 0.5, 0.5])
    # F of stages 0 to 3 until 4, B of 3 until 6, of 2 until 8, of 1 until 10, of 0 until 12; then 1 s and 0.5 s, and
    # on rank 1 another 0.5 s for stage 1, which was started after stage 3's.
    assert spans[0, "0B0"] == (10.0, 12.0)
    assert spans[0, "NORM"] == (13.5, 13.5)
    assert spans[1, "NORM"] == (14.0, 14.0)
    assert timeline.step_s == pytest.approx(14.0)


def test_taking_an_action_has_its_price():
    """0.1 s an action, before it and before it waits.

    rank 0: F 0.1-1.1; SEND until 1.2, RECV until 1.3, B taken at 1.4, its gradient comes at 4.4: until 6.4; RELEASE
            until 6.5; NORM taken at 6.6; STEP at 6.7
    rank 1: RECV until 0.1, F taken at 0.2, its input comes at 1.2: until 2.2; B 2.3-4.3; SEND until 4.4; RELEASE until
            4.5; NORM taken at 4.6; STEP at 4.7, and all norms are there at 6.6
    """
    timeline, spans = _run(THERE_AND_BACK, overhead_s=0.1)
    assert spans[0, "0F0"] == (0.1, 1.1)
    assert spans[0, "0SEND_F0"] == (1.1, 1.2)
    assert spans[0, "0RECV_B0"] == (1.2, 1.3)
    assert spans[1, "1F0"] == (1.2, 2.2)
    assert spans[1, "1B0"] == (2.3, 4.3)
    assert spans[0, "0B0"] == (4.4, 6.4)
    assert spans[0, "0RELEASE_F0"] == (6.4, 6.5)
    assert spans[0, "NORM"] == (6.6, 6.6)
    assert spans[1, "NORM"] == (4.6, 4.6)
    assert timeline.step_s == pytest.approx(6.7)
    assert [own.wall_s for own in timeline.ranks] == pytest.approx([6.7, 6.7])
    assert [own.busy_s for own in timeline.ranks] == pytest.approx([3.0, 3.0])
    assert idle_by_cause(timeline) == (
        {"waiting for rank 1": pytest.approx(2.9), "overhead": pytest.approx(0.7), "transfer": pytest.approx(0.1)},
        {
            "waiting for rank 0": pytest.approx(2.9),
            "overhead": pytest.approx(0.7),
            "transfer": pytest.approx(0.1),
        },
    )


def test_overhead_is_a_cause_of_its_own_where_transfers_are_free():
    """Nobody waits for a transfer: what one rank posts late, the other waits for as for the rank's own work."""
    program = build_program("1f1b", 4, 8, reduces=True)
    timeline, _ = _run(program, overhead_s=0.01)
    for rank, (own, causes) in enumerate(zip(timeline.ranks, idle_by_cause(timeline), strict=True)):
        assert causes["overhead"] == pytest.approx(0.01 * len(own.actions))
        assert causes.get("transfer", 0.0) <= 0.01 * 16 * 3, rank  # a SEND's own overhead, or a RECV's, on the way
    _, spans = _two_ranks(program={"reduces": True}, overhead_s=0.1, reduce_grad_s=[0.0, 5.0])
    assert spans[1, "1REDUCE_GRAD"][1] - spans[1, "1REDUCE_GRAD"][0] == pytest.approx(0.1)


def test_a_transfer_is_posted_after_the_overhead_of_both_its_ends():
    """Rank 0: F0 at 0.3 s, sent at 0.6, F1 at 0.9, sent at 1.2. Rank 1 asks at 0.3 and 0.6; 1 s under way each."""
    program = program_of("0F0 0SEND_F0 0F1 0SEND_F1 0RELEASE_F0 0RELEASE_F1\n1RECV_F0 1RECV_F1 1F0 1F1\n", (0, 1), 2)
    program = replace(program, forward_only=True)
    hardware = hardware_of(program, equal_stages(2, 0.0, 0.0), LinkCost(1.0, INSTANT), overhead_s=0.3)
    timeline = simulate(program, hardware)
    spans = {action_text(one.action): (one.start_s, one.end_s) for own in timeline.ranks for one in own.events}
    assert spans["1RECV_F1"] == pytest.approx((0.3, 0.6))
    assert spans["0SEND_F0"] == pytest.approx((0.3, 0.6))
    assert spans["1F0"] == pytest.approx((1.6, 1.6))
    assert spans["0RELEASE_F0"] == pytest.approx((1.2, 1.6))
    assert spans["0RELEASE_F1"] == pytest.approx((1.6, 2.2))
    assert spans["1F1"] == pytest.approx((2.2, 2.2))


def test_a_rank_of_twice_the_speed_takes_half_as_long_for_everything():
    """rank 0: F 0-1, B 2.5-4.5, NORM 0.2, STEP 0.4: 5.1; rank 1: F 1-1.5, B 1.5-2.5, NORM 0.1, STEP 0.2: 4.9."""
    timeline, spans = _run(THERE_AND_BACK, speeds=[1.0, 2.0], ranks=[RankCost(0.2, 0.4)] * 2)
    assert spans[1, "1F0"] == (1.0, 1.5)
    assert spans[0, "0B0"] == (2.5, 4.5)
    assert spans[1, "NORM"] == (2.5, 2.6)
    assert (spans[0, "STEP"], spans[1, "STEP"]) == ((4.7, 5.1), (4.7, 4.9))
    assert [own.begin_s for own in timeline.ranks] == pytest.approx([0.0, -0.2])
    assert timeline.step_s == pytest.approx(5.1)


def test_each_direction_of_each_pair_may_have_its_own_link():
    """There 3 s, back 1 s + 4 bytes / 8 bytes/s; on all other edges what is usual."""
    links = Links(LinkCost(9.0, INSTANT), {(0, 1): LinkCost(3.0, INSTANT), (1, 0): LinkCost(1.0, 8.0)})
    timeline, spans = _run(THERE_AND_BACK, 4, links)
    assert spans[1, "1F0"] == (4.0, 5.0)
    assert spans[0, "0B0"] == (8.5, 10.5)
    assert timeline.step_s == pytest.approx(10.5)
    timeline, spans = _run(THERE_AND_BACK, 4, Links(LinkCost(9.0, INSTANT), {(0, 1): LinkCost(3.0, INSTANT)}))
    assert spans[0, "0B0"] == (16.0, 18.0)


def test_latency_does_not_keep_the_wire():
    """1 byte at 1 byte/s and 2 s of latency: what is sent at 1 and 2 leaves by 2 and 3 and arrives at 4 and 5."""
    program = evaluation_program((0, 1), 2)
    timeline, spans = _run(program, 1, LinkCost(2.0, 1.0))
    assert spans[1, "1F0"] == (4.0, 5.0)
    assert spans[1, "1F1"] == (5.0, 6.0)
    assert timeline.step_s == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("shared", "last_stage", "step_s"), [((), [(8, 9), (11, 12)], 12), (({(0, 1), (1, 0)},), [(10, 11), (13, 14)], 14)]
)
def test_edges_that_share_a_wire_wait_for_each_other(shared, last_stage, step_s):
    """Stages on ranks 0, 1, 0; two microbatches; a transfer takes its wire 3 s.

    rank 0 sends at 1 and 2: carried 1-4 and 4-7. rank 1 sends at 5 and 8: carried 5-8 and 8-11 on a wire of its own,
    7-10 and 10-13 where the way back is the way there.
    """
    links = Links(LinkCost(0.0, 1.0), shared=tuple(map(frozenset, shared)))
    timeline, spans = _run(evaluation_program((0, 1, 0), 2), 3, links)
    assert [spans[1, "1F0"], spans[1, "1F1"]] == [(4.0, 5.0), (7.0, 8.0)]
    assert [spans[0, "2F0"], spans[0, "2F1"]] == last_stage
    assert timeline.step_s == pytest.approx(step_s)


def test_an_evaluation_ends_for_all_when_it_ends_for_the_last():
    """Three ranks, four microbatches: 4 + 2 forwards, and no norm and no update, whatever those cost."""
    timeline, _ = _run(evaluation_program((0, 1, 2), 4), ranks=[RankCost(5.0, 7.0)] * 3)
    assert timeline.step_s == pytest.approx(6.0)
    assert [(own.begin_s, own.end_s, own.busy_s) for own in timeline.ranks] == [(0.0, 6.0, 4.0)] * 3
    assert timeline.idle_fraction == pytest.approx(1 / 3)
