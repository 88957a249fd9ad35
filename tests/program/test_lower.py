"""Why: lowering decides when every transfer, release and reduction begins; each of its rules is seen once by hand."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from evenflow.cost import StageCost
from evenflow.errors import ProgramError
from evenflow.program import (
    Backward,
    Forward,
    InputBackward,
    Norm,
    ReceiveBackward,
    ReduceGrad,
    ReduceTied,
    ReleaseForward,
    SendForward,
    Step,
    WeightBackward,
    action_text,
    build_program,
    evaluation_program,
    even_work,
    lower,
    parse_order,
    ranks_text,
    verify,
)
from tests.sweeps import sweep


def _rank(program, rank):
    return ranks_text(program.ranks).splitlines()[rank]


def test_a_receive_is_posted_when_its_tensor_is_made_and_not_before():
    """Rank 0 makes its outputs at 1, 2, 3 and 4. Rank 1 computes F0 from 1 to 2, then B0 until 4, F1 until 5.

    What is made at 2 and 3 is received from 2 on, between F0 and B0; what is made at 4, between B0 and F1.
    """
    order = parse_order(("0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3", "1F0 1B0 1F1 1B1 1F2 1B2 1F3 1B3"))
    program = lower(order, (0, 1), 4, even_work((0, 1), 4))
    actions = [token for token in _rank(program, 1).split() if not token.startswith("1SEND")]
    assert actions[:7] == ["1RECV_F0", "1F0", "1RECV_F1", "1RECV_F2", "1B0", "1RECV_F3", "1F1"]


def test_costs_say_when_a_tensor_is_made():
    """A forward of 10 s on rank 0: its second output is made when rank 1 has long been done with all before it."""
    order = parse_order(("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"))
    slow = replace(even_work((0, 1), 2), costs=(StageCost(10.0, 1.0, 0.5, 0.5), StageCost(1.0, 2.0, 1.0, 1.0)))
    fast = replace(slow, costs=(StageCost(0.1, 1.0, 0.5, 0.5), StageCost(1.0, 2.0, 1.0, 1.0)))
    assert _rank(lower(order, (0, 1), 2, slow), 1).startswith("1RECV_F0 1F0 1RECV_F1 1B0")
    assert _rank(lower(order, (0, 1), 2, fast), 1).startswith("1RECV_F0 1RECV_F1 1F0 1B0")
    for work in (slow, fast):
        verify(lower(order, (0, 1), 2, work))


def _played(chance, ranks, stages, microbatches):
    """An order in which everything can happen, as chance has it; where stages are, too."""
    stage_rank = (*range(ranks), *(chance.randrange(ranks) for _ in range(stages - ranks)))
    order = [[] for _ in range(ranks)]
    kinds = (Forward, InputBackward, WeightBackward)
    todo = {kind(s, k) for kind in kinds for s in range(stages) for k in range(microbatches)}
    done = set()
    while todo:
        can = [
            own
            for own in todo
            if (isinstance(own, Forward) and (own.stage == 0 or Forward(own.stage - 1, own.microbatch) in done))
            or (
                isinstance(own, InputBackward)
                and Forward(own.stage, own.microbatch) in done
                and (own.stage == stages - 1 or InputBackward(own.stage + 1, own.microbatch) in done)
            )
            or (isinstance(own, WeightBackward) and InputBackward(own.stage, own.microbatch) in done)
        ]
        taken = chance.choice(sorted(can, key=action_text))
        order[stage_rank[taken.stage]].append(taken)
        todo.remove(taken)
        done.add(taken)
    return tuple(map(tuple, order)), stage_rank


@sweep(range(1200), 23)
def test_actions_that_take_no_time_are_told_apart(seeds):
    """Moments are equal then: a receive after an action that must come later would never be posted."""
    for seed in seeds:
        chance = Random(seed)
        ranks, microbatches = chance.randint(2, 4), chance.randint(3, 6)
        order, stage_rank = _played(chance, ranks, ranks + chance.randint(1, 4), microbatches)
        work = even_work(stage_rank, microbatches)
        verify(lower(order, stage_rank, microbatches, replace(work, costs=(StageCost(0, 0, 0, 0),) * work.stages)))


def test_receives_stand_in_the_order_of_the_sends_whatever_is_needed_first():
    """Rank 0 sends microbatch 0 first; rank 1 uses 1 first: it receives 0 before it."""
    order = parse_order(("0F0 0F1 0B1 0B0", "1F1 1F0 1B1 1B0"))
    actions = _rank(lower(order, (0, 1), 2), 1).split()
    assert actions.index("1RECV_F0") < actions.index("1RECV_F1") < actions.index("1F1")


def test_without_costs_a_fifth_tensor_waits_until_the_first_has_left():
    actions = build_program("gpipe", 2, 6).ranks[0]
    assert actions.index(ReleaseForward(0, 0)) == actions.index(Forward(0, 4)) - 1
    assert actions.index(SendForward(0, 3)) < actions.index(ReleaseForward(0, 0))
    assert actions.index(ReceiveBackward(0, 0)) < actions.index(Backward(0, 0)) - 3


def test_with_costs_a_send_is_completed_when_its_tensor_has_arrived():
    """A second an action: made at 1 and 3 s under way, F0's output has arrived when F4 begins; F1's when B0 does."""
    work = replace(even_work((0, 1), 5), transfer_s=(3.0,))
    actions = build_program("gpipe", (0, 1), 5, work).ranks[0]
    assert actions.index(ReleaseForward(0, 0)) == actions.index(Forward(0, 4)) - 1
    at_once = replace(work, transfer_s=(0.5,))  # two may be under way even so: no small delay is waited for
    actions = build_program("gpipe", (0, 1), 5, at_once).ranks[0]
    assert actions.index(ReleaseForward(0, 0)) == actions.index(Forward(0, 2)) - 1


def test_neighbours_on_one_rank_send_each_other_nothing():
    text = ranks_text(build_program("gpipe", (0, 0), 2).ranks)
    assert text == "0F0 0F1 1F0 1F1 1B0 1B1 0B0 0B1 NORM STEP\n"


def test_an_evaluation_has_no_backward_and_no_update():
    assert ranks_text(evaluation_program((0, 1), 1).ranks) == "0F0 0SEND_F0 0RELEASE_F0\n1RECV_F0 1F0\n"


def test_gradients_are_reduced_right_after_the_last_of_them():
    program = build_program("interleaved", 2, 2, reduces=True)
    first = program.ranks[0]
    assert first[first.index(ReduceGrad(2)) - 2 : first.index(ReduceGrad(2))][0] == Backward(2, 1)
    assert first.index(ReduceGrad(2)) < first.index(Backward(0, 0))
    assert first[-2:] == (Norm(), Step())


def test_all_ranks_add_the_gradients_of_tied_weights_in_one_order():
    """Rank 0 is done with stage 3 before stage 0, rank 1 with stage 2 before stage 1: 1 and 3 end last and go last."""
    program = build_program("zb-v", 2, 4, tied=[(1, 3), (0, 2)])
    started = [[own.stage for own in actions if isinstance(own, ReduceTied)] for actions in program.ranks]
    group = {0: "A", 2: "A", 1: "B", 3: "B"}
    assert sorted(map(len, started)) == [2, 2]
    assert [group[stage] for stage in started[0]] == [group[stage] for stage in started[1]]
    verify(program)
    program = build_program("interleaved", 2, 2, tied=[(0, 1), (2, 3)])  # stages 2 and 3 are done before 0 and 1
    assert [[own.stage for own in rank if isinstance(own, ReduceTied)] for rank in program.ranks] == [[2, 0], [3, 1]]


def test_a_weight_that_two_stages_of_a_rank_share_is_reduced_when_both_have_their_gradients():
    """V: the embedding (stage 0) and the head (stage 3) are on rank 0, and stage 3 is done first."""
    apart, shared = (build_program("zb-v", 2, 3, reduces=True, tied=tied).ranks[0] for tied in ((), [(0, 3)]))
    last = max(apart.index(ReduceGrad(0)), apart.index(ReduceGrad(3)))
    assert apart.index(ReduceGrad(3)) < apart.index(ReduceGrad(0)) == last
    tokens = [action_text(own) for own in shared]
    at = tokens.index("0REDUCE_GRAD")
    assert tokens[at + 1] == "3REDUCE_GRAD"
    assert tokens.index("0W2") < at
    assert not any("REDUCE_TIED" in token for token in tokens)


@pytest.mark.parametrize(
    ("stage_rank", "microbatches", "tied", "message"),
    [
        ((0, 1), 1, [(0, 7)], "stage 7 is tied, but stages run from 0 to 1"),
        ((0, 1), 1, [(0, -1)], "stage -1 is tied, but stages run from 0 to 1"),
        ((0, 1), 1, [(0, 1), (1, 0)], "stage 1 is tied twice; a stage can be in one group"),
        ((0, 1, 2), 1, [], "stage 2 is on rank 2, but ranks run from 0 to 1"),
        ((0, -1), 1, [], "stage 1 is on rank -1, but ranks run from 0 to 1"),
        ((), 1, [], "a program needs at least one rank and one stage"),
        ((0, 1), 0, [], "a step of 0 microbatches has nothing to do; 1 would be the least"),
    ],
)
def test_a_shape_that_no_program_has_is_refused(stage_rank, microbatches, tied, message):
    order = parse_order(("0F0 0B0", "1F0 1B0"))
    with pytest.raises(ProgramError) as caught:
        lower(order, stage_rank, microbatches, tied=tied)
    assert str(caught.value) == message


@pytest.mark.parametrize("make", [lambda: build_program("1f1b", 2, 0), lambda: evaluation_program((0, 1), 0)])
def test_a_step_of_no_microbatches_is_refused_whoever_makes_it(make):
    with pytest.raises(ProgramError, match="a step of 0 microbatches has nothing to do"):
        make()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("0F0 0B0", "0F0"), "rank 1: 0F0: stage 0 is not on this rank"),
        (("0F0 5B0", ""), "rank 0: 5B0: stage 5 is not on this rank"),
        (("0F0 0B1", ""), "rank 0: 0B1: microbatches run from 0 to 0"),
    ],
)
def test_an_order_of_what_there_is_not_is_refused(lines, message):
    with pytest.raises(ProgramError) as caught:
        lower(parse_order(lines), (0, 1), 1)
    assert str(caught.value) == message
