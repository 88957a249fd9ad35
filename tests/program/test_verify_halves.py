"""Why: halves of backward, several stages a rank, reductions and evaluation each have their own ways of being wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evenflow.errors import ProgramError
from evenflow.program import ReduceGrad, ReduceTied, WeightBackward, build_program, parse_ranks, ranks_text, verify
from tests.program.lines import after, moved, refusal_of, with_rank, without
from tests.property.cases import program_of

PROGRAM = build_program("1f1b", 2, 2)

# Halves on a loop of two ranks.
HALVES_0 = (
    "0F0 0SEND_F0 2RECV_F0 2F0 2SEND_F0 2RECV_B0 2I0 2SEND_B0 2W0 0RECV_B0 0I0 0W0 2REDUCE_GRAD "
    "0REDUCE_TIED 0REDUCE_GRAD 0RELEASE_F0 2RELEASE_F0 2RELEASE_B0 NORM STEP"
)
HALVES_1 = (
    "1RECV_F0 1F0 1SEND_F0 3RECV_F0 3F0 3I0 3SEND_B0 1RECV_B0 1I0 1SEND_B0 3W0 3REDUCE_TIED 3REDUCE_GRAD "
    "1W0 1REDUCE_GRAD 1RELEASE_F0 3RELEASE_B0 1RELEASE_B0 NORM STEP"
)


def _halves(rank_0=HALVES_0, rank_1=HALVES_1):
    return replace(program_of(f"{rank_0}\n{rank_1}\n", (0, 1, 0, 1), 1), reduces=True, tied=((0, 3),))


@pytest.mark.parametrize(
    ("rank_0", "rank_1", "message"),
    [
        pytest.param(HALVES_0, HALVES_1, None, id="legal"),
        pytest.param(
            moved(HALVES_0, "0I0", before="0RECV_B0"),
            HALVES_1,
            "rank 0: 0I0: its output gradient was not received",
            id="input-half-before-its-gradient",
        ),
        pytest.param(
            HALVES_0,
            moved(HALVES_1, "3I0", before="3F0"),
            "rank 1: 3I0: its forward has not run",
            id="input-half-before-forward",
        ),
        pytest.param(
            HALVES_0,
            moved(HALVES_1, "3W0", before="3I0"),
            "rank 1: 3W0: its input half has not run",
            id="weight-half-first",
        ),
        pytest.param(
            HALVES_0,
            moved(HALVES_1, "1W0", before="1I0"),
            "rank 1: 1W0: its input half has not run",
            id="other-weight-half-first",
        ),
        pytest.param(
            HALVES_0,
            HALVES_1.replace("3I0", "3B0"),
            "rank 1: 3W0: its input half has not run",
            id="weight-half-of-a-whole",
        ),
        pytest.param(
            HALVES_0,
            after(HALVES_1, "3I0", "3B0"),
            "rank 1: 3B0: this backward is computed whole and in halves",
            id="whole-and-in-halves",
        ),
        pytest.param(
            HALVES_0, after(HALVES_1, "3I0", "3I0"), "rank 1: 3I0: it appears twice", id="duplicate-input-half"
        ),
        pytest.param(
            after(HALVES_0, "2W0", "2W0"), HALVES_1, "rank 0: 2W0: it appears twice", id="duplicate-weight-half"
        ),
        pytest.param(
            moved(HALVES_0, "2SEND_B0", before="2I0"),
            HALVES_1,
            "rank 0: 2SEND_B0: its input gradient does not exist here",
            id="send-before-input-half",
        ),
        pytest.param(HALVES_0, without(HALVES_1, "3W0"), "rank 1: NORM: 3F0 is still held", id="missing-weight-half"),
        pytest.param(
            HALVES_0,
            moved(HALVES_1, "3REDUCE_TIED", before="3W0"),
            "rank 1: 3REDUCE_TIED: gradients are still added to after it",
            id="tied-too-early",
        ),
        pytest.param(
            moved(HALVES_0, "2REDUCE_GRAD", before="2W0"),
            HALVES_1,
            "rank 0: 2REDUCE_GRAD: gradients are still added to after it",
            id="reduced-too-early",
        ),
        pytest.param(
            moved(HALVES_0, "0REDUCE_GRAD", before="0REDUCE_TIED"),
            HALVES_1,
            "rank 0: 0REDUCE_GRAD: the gradients of tied weights are not complete",
            id="replicas-before-tied",
        ),
        pytest.param(
            HALVES_0, without(HALVES_1, "1REDUCE_GRAD"), "rank 1: 1REDUCE_GRAD: it is missing", id="missing-reduction"
        ),
        pytest.param(
            without(HALVES_0, "0REDUCE_TIED"),
            HALVES_1,
            "rank 0: 0REDUCE_TIED: it is missing",
            id="missing-tied-reduction",
        ),
        pytest.param(
            after(HALVES_0, "2W0", "2REDUCE_TIED"),
            HALVES_1,
            "rank 0: 2REDUCE_TIED: its weights are tied to no other rank's",
            id="tied-to-nothing",
        ),
        pytest.param(
            after(HALVES_0, "0REDUCE_GRAD", "0REDUCE_GRAD"),
            HALVES_1,
            "rank 0: 0REDUCE_GRAD: it appears twice",
            id="duplicate-reduction",
        ),
        pytest.param(
            HALVES_0,
            moved(HALVES_1, "3REDUCE_GRAD", before="STEP"),
            "rank 1: 3REDUCE_GRAD: it comes after NORM",
            id="reduced-after-norm",
        ),
        pytest.param(
            after(HALVES_0, "0F0", "1REDUCE_GRAD"),
            HALVES_1,
            "rank 0: 1REDUCE_GRAD: stage 1 is not on this rank",
            id="reduction-of-another-rank",
        ),
        pytest.param(
            HALVES_0,
            moved(HALVES_1, "1SEND_B0", before="3SEND_B0"),
            "rank 1: 1SEND_B0: its input gradient does not exist here",
            id="gradients-swapped-before-made",
        ),
        pytest.param(
            moved(HALVES_0, "0RECV_B0", before="2RECV_B0"),
            HALVES_1,
            "rank 1 to rank 0: message 1 is 3SEND_B0 where it is sent, but 1SEND_B0 is expected where it is received",
            id="two-stages-share-an-edge",
        ),
    ],
)
def test_names_what_is_wrong_with_halves_and_reductions(rank_0, rank_1, message):
    assert refusal_of(_halves(rank_0, rank_1)) == message


# Two ranks back and forth: stages 1 and 2 meet on rank 1, where nothing travels between them.
V_0 = "0F0 0SEND_F0 3RECV_F0 3F0 3B0 3SEND_B0 0RECV_B0 0B0 0RELEASE_F0 3RELEASE_B0 NORM STEP"
V_1 = "1RECV_F0 1F0 2F0 2SEND_F0 2RECV_B0 2B0 1B0 1SEND_B0 2RELEASE_F0 1RELEASE_B0 NORM STEP"


@pytest.mark.parametrize(
    ("rank_1", "message"),
    [
        pytest.param(V_1, None, id="legal"),
        pytest.param(
            moved(V_1, "2F0", before="1F0"),
            "rank 1: 2F0: its input has not been computed",
            id="forward-before-its-neighbour",
        ),
        pytest.param(
            moved(V_1, "1B0", before="2B0"),
            "rank 1: 1B0: its output gradient has not been computed",
            id="backward-before-its-neighbour",
        ),
        pytest.param(
            after(V_1, "1F0", "1SEND_F0"),
            "rank 1: 1SEND_F0: the stage after it is on the same rank: nothing travels",
            id="sends-to-itself",
        ),
        pytest.param(
            after(V_1, "1F0", "2RECV_F0"),
            "rank 1: 2RECV_F0: the stage before it is on the same rank: nothing travels",
            id="receives-from-itself",
        ),
        pytest.param(
            after(V_1, "2B0", "2SEND_B0"),
            "rank 1: 2SEND_B0: the stage before it is on the same rank: nothing travels",
            id="sends-back-to-itself",
        ),
        pytest.param(
            after(V_1, "2B0", "1RECV_B0"),
            "rank 1: 1RECV_B0: the stage after it is on the same rank: nothing travels",
            id="receives-back-from-itself",
        ),
        pytest.param(without(V_1, "1F0"), "rank 1: 2F0: its input has not been computed", id="neighbour-missing"),
    ],
)
def test_names_what_is_wrong_between_neighbours_on_a_rank(rank_1, message):
    assert refusal_of(program_of(f"{V_0}\n{rank_1}\n", (0, 1, 1, 0), 1)) == message


EVALUATION_0 = "0F0 0SEND_F0 0F1 0SEND_F1 0RELEASE_F0 0RELEASE_F1"
EVALUATION_1 = "1RECV_F0 1F0 1RECV_F1 1F1"


@pytest.mark.parametrize(
    ("rank_0", "rank_1", "message"),
    [
        pytest.param(EVALUATION_0, EVALUATION_1, None, id="legal"),
        pytest.param(
            EVALUATION_0 + " NORM STEP", EVALUATION_1, "rank 0: NORM: a forward-only program does not train", id="norm"
        ),
        pytest.param(
            EVALUATION_0, EVALUATION_1 + " 1B0", "rank 1: 1B0: a forward-only program does not train", id="backward"
        ),
        pytest.param(
            EVALUATION_0,
            EVALUATION_1 + " 1SEND_B0",
            "rank 1: 1SEND_B0: a forward-only program does not train",
            id="send-back",
        ),
        pytest.param(
            without(EVALUATION_0, "0RELEASE_F1"),
            EVALUATION_1,
            "rank 0: at its end: 0SEND_F1 is still held",
            id="leak-at-the-end",
        ),
        pytest.param(EVALUATION_0, without(EVALUATION_1, "1F1"), "rank 1: 1F1: it is missing", id="missing-forward"),
        pytest.param(
            EVALUATION_0, after(EVALUATION_1, "1F0", "1F0"), "rank 1: 1F0: it appears twice", id="duplicate-forward"
        ),
    ],
)
def test_names_what_is_wrong_with_an_evaluation(rank_0, rank_1, message):
    program = replace(program_of(f"{rank_0}\n{rank_1}\n", (0, 1), 2), forward_only=True)
    assert refusal_of(program) == message


def test_a_program_that_trains_is_no_evaluation():
    assert refusal_of(replace(PROGRAM, forward_only=True)) == "rank 0: 0RECV_B0: a forward-only program does not train"
    assert refusal_of(program_of(f"{EVALUATION_0}\n{EVALUATION_1}\n", (0, 1), 2)) == "rank 0: 0B0: it is missing"


def test_reductions_that_the_ranks_start_in_another_order_wait_for_ever():
    """Tied weights are added by both ranks at once: each would begin with what the other has put second."""
    good = build_program("zb-v", 2, 2, tied=[(0, 2), (1, 3)])
    verify(good)
    first = list(good.ranks[0])
    one, other = first.index(ReduceTied(0)), first.index(ReduceTied(3))
    first[one], first[other] = first[other], first[one]
    late = max(one, other)
    assert all(not isinstance(action, WeightBackward) for action in first[late:])
    assert (
        refusal_of(with_rank(good, 0, tuple(first)))
        == "deadlock: rank 0 at NORM, rank 1 at NORM wait for each other for ever"
    )


def test_replicas_come_after_all_that_a_rank_adds_to_a_tied_weight():
    """Stages 0 and 3 are on rank 0 and tied to stage 1: one addition, which begins when both have started it."""
    good = build_program("zb-v", 2, 1, reduces=True, tied=[(0, 1, 3)])
    verify(good)
    tokens = ranks_text(good.ranks).splitlines()[0]
    early = parse_ranks(moved(tokens, "0REDUCE_GRAD", before="3REDUCE_TIED"))[0]
    reason = "rank 0: 0REDUCE_GRAD: the gradients of tied weights are not complete"
    assert refusal_of(with_rank(good, 0, early)) == reason
    early = parse_ranks(moved(tokens, "3REDUCE_GRAD", before="3REDUCE_TIED"))[0]
    assert refusal_of(with_rank(good, 0, early)) == reason.replace("0REDUCE", "3REDUCE")


def test_a_weight_that_stages_of_one_rank_share_is_reduced_when_both_have_added_to_it():
    """V: stages 0 and 3 are on rank 0. Stage 3 is done first; reduced then, the weight would lack stage 0's half."""
    good = build_program("zb-v", 2, 2, reduces=True, tied=[(0, 3)])
    assert good.tied == ((0, 3),)
    verify(good)
    alone = build_program("zb-v", 2, 2, reduces=True)
    assert alone.ranks[0].index(ReduceGrad(3)) < alone.ranks[0].index(ReduceGrad(0)) - 1
    with pytest.raises(ProgramError) as caught:
        verify(replace(alone, tied=((0, 3),)))
    assert str(caught.value) == "rank 0: 3REDUCE_GRAD: the gradients of tied weights are not complete"
    single = build_program("zb-v", 2, 2, tied=[(0, 3)])
    verify(single)
    needless = (*single.ranks[0][:-2], ReduceTied(0), *single.ranks[0][-2:])
    with pytest.raises(ProgramError, match="0REDUCE_TIED: its weights are tied to no other rank's"):
        verify(replace(single, ranks=(needless, single.ranks[1])))


def test_one_stage_of_a_rank_reduces_the_weight_that_they_share():
    program = build_program("zb-v", 2, 2, reduces=True, tied=[(0, 3), (1, 2)])
    assert [program.reducer(stage) for stage in range(4)] == [0, 1, 1, 0]
    apart = build_program("interleaved", (0, 1, 0, 1), 2, reduces=True, tied=[(0, 2, 3)])
    assert [apart.reducer(stage) for stage in range(4)] == [0, 1, 0, 3]
    assert (program.tied_apart, apart.tied_apart) == ((), ((0, 2, 3),))


def test_who_is_tied_must_exist_and_be_in_one_group():
    with pytest.raises(ProgramError, match="stage 2 is tied, but stages run from 0 to 1"):
        verify(replace(PROGRAM, tied=((0, 2),)))
    with pytest.raises(ProgramError, match="stage 1 is tied twice; a stage can be in one group"):
        verify(replace(PROGRAM, tied=((0, 1), (1, 0))))
