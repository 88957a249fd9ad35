"""Why: what verify lets through is run as it is, so each way of being wrong is tried and must be named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evenflow.cost import StageMemory
from evenflow.errors import ProgramError
from evenflow.program import (
    SCHEDULES,
    Action,
    Backward,
    Compute,
    Forward,
    Norm,
    Program,
    ReduceTied,
    Step,
    WeightBackward,
    action_text,
    build_program,
    default_stage_rank,
    lower,
    verify,
)
from tests.property.cases import NO_MEMORY, program_of

RANK_0 = "0F0 0SEND_F0 0RECV_B0 0F1 0SEND_F1 0RECV_B1 0B0 0B1 0RELEASE_F0 0RELEASE_F1 NORM STEP"
RANK_1 = "1RECV_F0 1F0 1RECV_F1 1B0 1SEND_B0 1F1 1B1 1SEND_B1 1RELEASE_B0 1RELEASE_B1 NORM STEP"

SMALL = [(name, p, m) for name in SCHEDULES for p, m in [(1, 1), (1, 3), (2, 2), (3, 2), (3, 4)]]


def _program(rank_0=RANK_0, rank_1=RANK_1):
    return program_of(f"{rank_0}\n{rank_1}\n", (0, 1), 2)


def _without(line, token):
    tokens = line.split()
    tokens.remove(token)
    return " ".join(tokens)


def _moved(line, token, before):
    tokens = _without(line, token).split()
    tokens.insert(tokens.index(before), token)
    return " ".join(tokens)


def _after(line, token, added):
    tokens = line.split()
    tokens.insert(tokens.index(token) + 1, added)
    return " ".join(tokens)


def test_what_is_broken_below_is_legal_to_begin_with():
    verify(_program())
    assert _program() == build_program("1f1b", 2, 2)


@pytest.mark.parametrize(
    ("rank_0", "rank_1", "message"),
    [
        pytest.param(_after(RANK_0, "0F0", "0F0"), RANK_1, "rank 0: 0F0: it appears twice", id="duplicate-forward"),
        pytest.param(RANK_0, _after(RANK_1, "1B0", "1B0"), "rank 1: 1B0: it appears twice", id="duplicate-backward"),
        pytest.param(
            _after(RANK_0, "0SEND_F0", "0SEND_F0"),
            RANK_1,
            "rank 0: 0SEND_F0: it appears twice",
            id="duplicate-send",
        ),
        pytest.param(_after(RANK_0, "NORM", "NORM"), RANK_1, "rank 0: NORM: it appears twice", id="duplicate-norm"),
        pytest.param(
            RANK_0,
            _without(_without(RANK_1, "1B1"), "1SEND_B1").replace("1RELEASE_B1 ", ""),
            "rank 1: NORM: 1F1 is still held",
            id="missing-backward",
        ),
        pytest.param(
            "0F0 0SEND_F0 0RECV_B0 0B0 0RELEASE_F0 NORM STEP",
            RANK_1,
            "rank 0: 0F1: it is missing",
            id="missing-microbatch",
        ),
        pytest.param(
            _without(RANK_0, "0F0"),
            RANK_1,
            "rank 0: 0SEND_F0: its output does not exist here",
            id="missing-forward",
        ),
        pytest.param(_after(RANK_0, "0F0", "1F0"), RANK_1, "rank 0: 1F0: stage 1 is not on this rank", id="wrong-rank"),
        pytest.param(
            _after(RANK_0, "0F0", "2F0"),
            RANK_1,
            "rank 0: 2F0: stage 2 is not on this rank",
            id="no-such-stage",
        ),
        pytest.param(
            _after(RANK_0, "0F0", "0F2"),
            RANK_1,
            "rank 0: 0F2: microbatches run from 0 to 1",
            id="no-such-microbatch",
        ),
        pytest.param(
            _moved(RANK_0, "0SEND_F0", before="0F0"),
            RANK_1,
            "rank 0: 0SEND_F0: its output does not exist here",
            id="send-before-forward",
        ),
        pytest.param(
            RANK_0,
            _moved(RANK_1, "1SEND_B0", before="1B0"),
            "rank 1: 1SEND_B0: its input gradient does not exist here",
            id="send-before-backward",
        ),
        pytest.param(
            RANK_0,
            _without(RANK_1, "1RECV_F0"),
            "rank 1: 1F0: its input was not received",
            id="receive-forward-missing",
        ),
        pytest.param(
            _without(RANK_0, "0RECV_B0"),
            RANK_1,
            "rank 0: 0B0: its output gradient was not received",
            id="receive-backward-missing",
        ),
        pytest.param(
            RANK_0,
            _moved(RANK_1, "1F1", before="1RECV_F1"),
            "rank 1: 1F1: its input was not received",
            id="forward-before-receive",
        ),
        pytest.param(
            _moved(RANK_0, "0B1", before="0F1"),
            RANK_1,
            "rank 0: 0B1: its forward has not run",
            id="backward-before-forward",
        ),
        pytest.param(
            _moved(RANK_0, "0RECV_B1", before="0RECV_B0"),
            RANK_1,
            "rank 1 to rank 0: message 0 is 1SEND_B0 where it is sent, but 1SEND_B1 is expected where it is received",
            id="receives-swapped",
        ),
        pytest.param(
            RANK_0,
            _moved(RANK_1, "1RECV_F1", before="1RECV_F0"),
            "rank 0 to rank 1: message 0 is 0SEND_F0 where it is sent, but 0SEND_F1 is expected where it is received",
            id="other-receives-swapped",
        ),
        pytest.param(
            "0F0 0RECV_B0 0F1 0SEND_F1 0SEND_F0 0RECV_B1 0B0 0B1 0RELEASE_F0 0RELEASE_F1 NORM STEP",
            RANK_1,
            "rank 0 to rank 1: message 0 is 0SEND_F1 where it is sent, but 0SEND_F0 is expected where it is received",
            id="sends-swapped",
        ),
        pytest.param(
            _moved(RANK_0, "0RELEASE_F0", before="0SEND_F0"),
            RANK_1,
            "rank 0: 0RELEASE_F0: it was not sent",
            id="released-before-sent",
        ),
        pytest.param(
            RANK_0,
            _moved(RANK_1, "1RELEASE_B0", before="1SEND_B0"),
            "rank 1: 1RELEASE_B0: it was not sent",
            id="gradient-released-before-sent",
        ),
        pytest.param(
            _without(RANK_0, "0RELEASE_F0"), RANK_1, "rank 0: NORM: 0SEND_F0 is still held", id="leak-forward"
        ),
        pytest.param(
            RANK_0,
            _without(RANK_1, "1RELEASE_B1"),
            "rank 1: NORM: 1SEND_B1 is still held",
            id="leak-backward",
        ),
        pytest.param(
            _without(RANK_0, "0SEND_F1").replace("0RELEASE_F1 ", ""),
            RANK_1,
            "rank 0: 0SEND_F1: it is missing",
            id="send-missing",
        ),
        pytest.param(
            RANK_0,
            _without(RANK_1, "1SEND_B1").replace("1RELEASE_B1 ", ""),
            "rank 1: 1SEND_B1: it is missing",
            id="send-backward-missing",
        ),
        pytest.param(
            _moved(RANK_0, "0RELEASE_F1", before="STEP"),
            RANK_1,
            "rank 0: NORM: 0SEND_F1 is still held",
            id="released-after-norm",
        ),
        pytest.param(RANK_0 + " 0F0", RANK_1, "rank 0: 0F0: it comes after STEP", id="forward-after-step"),
        pytest.param(RANK_0, RANK_1 + " NORM", "rank 1: NORM: it comes after STEP", id="norm-after-step"),
        pytest.param(RANK_0 + " STEP", RANK_1, "rank 0: STEP: it comes after STEP", id="second-step"),
        pytest.param(_without(RANK_0, "NORM"), RANK_1, "rank 0: STEP: NORM has not run", id="missing-norm"),
        pytest.param(RANK_0, _without(RANK_1, "STEP"), "rank 1: STEP: it is missing", id="missing-step"),
        pytest.param(
            _after(RANK_0, "0F0", "0RECV_F0"),
            RANK_1,
            "rank 0: 0RECV_F0: the first stage has nobody before it",
            id="first-stage-receives",
        ),
        pytest.param(
            _after(RANK_0, "0B0", "0SEND_B0"),
            RANK_1,
            "rank 0: 0SEND_B0: the first stage has nobody before it",
            id="first-stage-sends-back",
        ),
        pytest.param(
            RANK_0,
            _after(RANK_1, "1F0", "1SEND_F0"),
            "rank 1: 1SEND_F0: the last stage has nobody after it",
            id="last-stage-sends",
        ),
        pytest.param(
            RANK_0,
            _after(RANK_1, "1F0", "1RECV_B0"),
            "rank 1: 1RECV_B0: the last stage has nobody after it",
            id="last-stage-receives-back",
        ),
        pytest.param(
            "0F0 0SEND_F0 0RECV_B0 0B0 0F1 0SEND_F1 0RECV_B1 0B1 0RELEASE_F0 0RELEASE_F1 NORM STEP",
            "1RECV_F0 1F0 1RECV_F1 1F1 1B0 1SEND_B0 1B1 1SEND_B1 1RELEASE_B0 1RELEASE_B1 NORM STEP",
            "deadlock: rank 0 at 0B0, rank 1 at 1F1 wait for each other for ever",
            id="deadlock",
        ),
        pytest.param(
            _moved(_moved(RANK_0, "0RELEASE_F0", before="0RECV_B0"), "0RELEASE_F1", before="0RECV_B1"),
            _moved(_moved(RANK_1, "1RELEASE_B0", before="1F1"), "1RECV_F1", before="1F1"),
            None,
            id="legal-tight-releases",
        ),
        pytest.param(
            "0F0 0SEND_F0 0F1 0SEND_F1 0RELEASE_F0 0RELEASE_F1 0RECV_B0 0RECV_B1 0B0 0B1 NORM STEP",
            "1RECV_F0 1F0 1B0 1SEND_B0 1RELEASE_B0 1RECV_F1 1F1 1B1 1SEND_B1 1RELEASE_B1 NORM STEP",
            "deadlock: rank 0 at 0RELEASE_F1, rank 1 at 1RELEASE_B0 wait for each other for ever",
            id="deadlock-of-releases",
        ),
    ],
)
def test_names_rank_action_and_reason(rank_0, rank_1, message):
    if message is None:
        verify(_program(rank_0, rank_1))
        return
    with pytest.raises(ProgramError) as caught:
        verify(_program(rank_0, rank_1))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("ranks", "stage_rank", "microbatches", "message"),
    [
        pytest.param("0F0 0B0 NORM 0F1 0B1 STEP", (0,), 2, "rank 0: 0F1: ", id="gradients-after-the-norm-of-gradients"),
        pytest.param(
            f"{RANK_0}\n{_moved(_moved(RANK_1, '1SEND_B1', before='STEP'), '1RELEASE_B1', before='STEP')}",
            (0, 1),
            2,
            "rank 1: 1SEND_B1: ",
            id="send-after-norm",
        ),
        pytest.param(
            f"{RANK_0}\n{_without(_moved(RANK_1, '1SEND_B1', before='STEP'), '1RELEASE_B1')}",
            (0, 1),
            2,
            "rank 1: ",
            id="leak-after-norm",
        ),
    ],
)
def test_nothing_stands_between_norm_and_step(ranks, stage_rank, microbatches, message):
    """The norm must see every gradient, and who waits for a send behind it would never combine."""
    with pytest.raises(ProgramError) as caught:
        verify(program_of(ranks, stage_rank, microbatches))
    assert str(caught.value).startswith(message)


def _with_rank(program: Program, rank: int, actions: tuple[Action, ...]) -> Program:
    return replace(program, ranks=(*program.ranks[:rank], actions, *program.ranks[rank + 1 :]))


def _refusal(program: Program) -> str | None:
    try:
        verify(program)
    except ProgramError as error:
        return str(error)
    return None


# Halves on a loop of two ranks: what the table above says of whole backwards and of one stage a rank goes on here.
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
            _moved(HALVES_0, "0I0", before="0RECV_B0"),
            HALVES_1,
            "rank 0: 0I0: its output gradient was not received",
            id="input-half-before-its-gradient",
        ),
        pytest.param(
            HALVES_0,
            _moved(HALVES_1, "3I0", before="3F0"),
            "rank 1: 3I0: its forward has not run",
            id="input-half-before-forward",
        ),
        pytest.param(
            HALVES_0,
            _moved(HALVES_1, "3W0", before="3I0"),
            "rank 1: 3W0: its input half has not run",
            id="weight-half-first",
        ),
        pytest.param(
            HALVES_0,
            _moved(HALVES_1, "1W0", before="1I0"),
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
            _after(HALVES_1, "3I0", "3B0"),
            "rank 1: 3B0: this backward is computed whole and in halves",
            id="whole-and-in-halves",
        ),
        pytest.param(
            HALVES_0, _after(HALVES_1, "3I0", "3I0"), "rank 1: 3I0: it appears twice", id="duplicate-input-half"
        ),
        pytest.param(
            _after(HALVES_0, "2W0", "2W0"), HALVES_1, "rank 0: 2W0: it appears twice", id="duplicate-weight-half"
        ),
        pytest.param(
            _moved(HALVES_0, "2SEND_B0", before="2I0"),
            HALVES_1,
            "rank 0: 2SEND_B0: its input gradient does not exist here",
            id="send-before-input-half",
        ),
        pytest.param(HALVES_0, _without(HALVES_1, "3W0"), "rank 1: NORM: 3F0 is still held", id="missing-weight-half"),
        pytest.param(
            HALVES_0,
            _moved(HALVES_1, "3REDUCE_TIED", before="3W0"),
            "rank 1: 3REDUCE_TIED: gradients are still added to after it",
            id="tied-too-early",
        ),
        pytest.param(
            _moved(HALVES_0, "2REDUCE_GRAD", before="2W0"),
            HALVES_1,
            "rank 0: 2REDUCE_GRAD: gradients are still added to after it",
            id="reduced-too-early",
        ),
        pytest.param(
            _moved(HALVES_0, "0REDUCE_GRAD", before="0REDUCE_TIED"),
            HALVES_1,
            "rank 0: 0REDUCE_GRAD: the gradients of tied weights are not complete",
            id="replicas-before-tied",
        ),
        pytest.param(
            HALVES_0, _without(HALVES_1, "1REDUCE_GRAD"), "rank 1: 1REDUCE_GRAD: it is missing", id="missing-reduction"
        ),
        pytest.param(
            _without(HALVES_0, "0REDUCE_TIED"),
            HALVES_1,
            "rank 0: 0REDUCE_TIED: it is missing",
            id="missing-tied-reduction",
        ),
        pytest.param(
            _after(HALVES_0, "2W0", "2REDUCE_TIED"),
            HALVES_1,
            "rank 0: 2REDUCE_TIED: its weights are tied to no other rank's",
            id="tied-to-nothing",
        ),
        pytest.param(
            _after(HALVES_0, "0REDUCE_GRAD", "0REDUCE_GRAD"),
            HALVES_1,
            "rank 0: 0REDUCE_GRAD: it appears twice",
            id="duplicate-reduction",
        ),
        pytest.param(
            HALVES_0,
            _moved(HALVES_1, "3REDUCE_GRAD", before="STEP"),
            "rank 1: 3REDUCE_GRAD: it comes after NORM",
            id="reduced-after-norm",
        ),
        pytest.param(
            _after(HALVES_0, "0F0", "1REDUCE_GRAD"),
            HALVES_1,
            "rank 0: 1REDUCE_GRAD: stage 1 is not on this rank",
            id="reduction-of-another-rank",
        ),
        pytest.param(
            HALVES_0,
            _moved(HALVES_1, "1SEND_B0", before="3SEND_B0"),
            "rank 1: 1SEND_B0: its input gradient does not exist here",
            id="gradients-swapped-before-made",
        ),
        pytest.param(
            _moved(HALVES_0, "0RECV_B0", before="2RECV_B0"),
            HALVES_1,
            "rank 1 to rank 0: message 1 is 3SEND_B0 where it is sent, but 1SEND_B0 is expected where it is received",
            id="two-stages-share-an-edge",
        ),
    ],
)
def test_names_what_is_wrong_with_halves_and_reductions(rank_0, rank_1, message):
    assert _refusal(_halves(rank_0, rank_1)) == message


# Two ranks back and forth: stages 1 and 2 meet on rank 1, where nothing travels between them.
V_0 = "0F0 0SEND_F0 3RECV_F0 3F0 3B0 3SEND_B0 0RECV_B0 0B0 0RELEASE_F0 3RELEASE_B0 NORM STEP"
V_1 = "1RECV_F0 1F0 2F0 2SEND_F0 2RECV_B0 2B0 1B0 1SEND_B0 2RELEASE_F0 1RELEASE_B0 NORM STEP"


@pytest.mark.parametrize(
    ("rank_1", "message"),
    [
        pytest.param(V_1, None, id="legal"),
        pytest.param(
            _moved(V_1, "2F0", before="1F0"),
            "rank 1: 2F0: its input has not been computed",
            id="forward-before-its-neighbour",
        ),
        pytest.param(
            _moved(V_1, "1B0", before="2B0"),
            "rank 1: 1B0: its output gradient has not been computed",
            id="backward-before-its-neighbour",
        ),
        pytest.param(
            _after(V_1, "1F0", "1SEND_F0"),
            "rank 1: 1SEND_F0: the stage after it is on the same rank: nothing travels",
            id="sends-to-itself",
        ),
        pytest.param(
            _after(V_1, "1F0", "2RECV_F0"),
            "rank 1: 2RECV_F0: the stage before it is on the same rank: nothing travels",
            id="receives-from-itself",
        ),
        pytest.param(
            _after(V_1, "2B0", "2SEND_B0"),
            "rank 1: 2SEND_B0: the stage before it is on the same rank: nothing travels",
            id="sends-back-to-itself",
        ),
        pytest.param(
            _after(V_1, "2B0", "1RECV_B0"),
            "rank 1: 1RECV_B0: the stage after it is on the same rank: nothing travels",
            id="receives-back-from-itself",
        ),
        pytest.param(_without(V_1, "1F0"), "rank 1: 2F0: its input has not been computed", id="neighbour-missing"),
    ],
)
def test_names_what_is_wrong_between_neighbours_on_a_rank(rank_1, message):
    assert _refusal(program_of(f"{V_0}\n{rank_1}\n", (0, 1, 1, 0), 1)) == message


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
            _without(EVALUATION_0, "0RELEASE_F1"),
            EVALUATION_1,
            "rank 0: at its end: 0SEND_F1 is still held",
            id="leak-at-the-end",
        ),
        pytest.param(EVALUATION_0, _without(EVALUATION_1, "1F1"), "rank 1: 1F1: it is missing", id="missing-forward"),
        pytest.param(
            EVALUATION_0, _after(EVALUATION_1, "1F0", "1F0"), "rank 1: 1F0: it appears twice", id="duplicate-forward"
        ),
    ],
)
def test_names_what_is_wrong_with_an_evaluation(rank_0, rank_1, message):
    program = replace(program_of(f"{rank_0}\n{rank_1}\n", (0, 1), 2), forward_only=True)
    assert _refusal(program) == message


def test_a_program_that_trains_is_no_evaluation():
    assert _refusal(replace(_program(), forward_only=True)) == "rank 0: 0RECV_B0: a forward-only program does not train"
    assert _refusal(program_of(f"{EVALUATION_0}\n{EVALUATION_1}\n", (0, 1), 2)) == "rank 0: 0B0: it is missing"


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
        _refusal(_with_rank(good, 0, tuple(first)))
        == "deadlock: rank 0 at NORM, rank 1 at NORM wait for each other for ever"
    )


def test_who_is_tied_must_exist_and_be_in_one_group():
    with pytest.raises(ProgramError, match="stage 2 is tied, but stages run from 0 to 1"):
        verify(replace(_program(), tied=((0, 2),)))
    with pytest.raises(ProgramError, match="stage 1 is tied twice; a stage can be in one group"):
        verify(replace(_program(), tied=((0, 1), (1, 0))))


def test_a_cap_names_the_action_that_exceeds_it():
    """Stage 0 keeps 5 bytes a microbatch: 10 after its second forward, which itself takes 7 in passing."""
    memory = [StageMemory(0, 100, 5, 0, 0, 0, 7, 1), NO_MEMORY]
    verify(_program(), memory, [112, 0])
    with pytest.raises(ProgramError, match=r"^rank 0: 0F1: the rank holds 112 B of 111 B$"):
        verify(_program(), memory, [111, 0])


def test_a_program_of_nothing_and_a_stage_on_no_rank():
    with pytest.raises(ProgramError, match="at least one rank and one stage"):
        verify(Program((), 1, ()))
    with pytest.raises(ProgramError, match="stage 1 is on rank 2, but ranks run from 0 to 1"):
        verify(replace(_program(), stage_rank=(0, 2)))


def _small(schedule, p, m):
    """With replicas, and the first stage tied to the last where that one is elsewhere."""
    ranks = default_stage_rank(schedule, p)
    return build_program(schedule, ranks, m, reduces=True, tied=[(0, len(ranks) - 1)] if p > 1 else ())


@pytest.mark.parametrize(("schedule", "p", "m"), SMALL)
def test_nothing_can_be_left_out(schedule, p, m):
    program = _small(schedule, p, m)
    verify(program)
    for rank, actions in enumerate(program.ranks):
        for position, action in enumerate(actions):
            shorter = (*actions[:position], *actions[position + 1 :])
            refusal = _refusal(_with_rank(program, rank, shorter))
            assert refusal is not None, f"{action_text(action)} of rank {rank} was not missed"
            assert f"rank {rank}" in refusal


@pytest.mark.parametrize(("schedule", "p", "m"), SMALL)
def test_nothing_can_be_done_twice(schedule, p, m):
    program = _small(schedule, p, m)
    for rank, actions in enumerate(program.ranks):
        for position, action in enumerate(actions):
            for again in {position + 1, (position + 1 + len(actions)) // 2, len(actions)}:
                refusal = _refusal(_with_rank(program, rank, (*actions[:again], action, *actions[again:])))
                assert refusal is not None, f"a second {action_text(action)} of rank {rank} was not noticed"
                assert refusal.startswith(f"rank {rank}: ")


@pytest.mark.parametrize(("schedule", "p", "m"), SMALL)
def test_no_rank_can_do_anothers_work(schedule, p, m):
    program = _small(schedule, p, m)
    for rank in range(p):
        for other in range(p):
            if rank == other:
                continue
            for action in program.ranks[rank]:
                if isinstance(action, Norm | Step):
                    continue
                message = f"rank {other}: {action_text(action)}: stage {action.stage} is not on this rank"
                assert _refusal(_with_rank(program, other, (action, *program.ranks[other]))) == message


def test_a_cycle_through_three_ranks_is_found():
    """Each pair of ranks agrees; only all three together show that nobody can begin."""
    order: tuple[tuple[Compute, ...], ...] = (
        (Forward(0, 0), Backward(0, 0), Forward(0, 1), Backward(0, 1)),
        (Forward(1, 0), Forward(1, 1), Backward(1, 0), Backward(1, 1)),
        (Forward(2, 0), Backward(2, 0), Forward(2, 1), Backward(2, 1)),
    )
    with pytest.raises(ProgramError, match="deadlock: rank 0 at 0B0, rank 1 at 1F1, rank 2 at"):
        verify(lower(order, (0, 1, 2), 2))


def test_what_pytorchs_validator_accepts_and_ours_does_not():
    """A forward twice, and two ranks that wait for each other: both pass there."""
    theirs = pytest.importorskip("torch.distributed.pipelining.schedules")

    def accepted_there(*ranks):
        order = {rank: [theirs._Action.from_str(token) for token in line.split()] for rank, line in enumerate(ranks)}
        theirs._validate_schedule(order, len(ranks), len(ranks), 2)

    twice: tuple[tuple[Compute, ...], ...] = (
        (Forward(0, 0), Forward(0, 0), Backward(0, 0), Forward(0, 1), Backward(0, 1)),
    )
    accepted_there("0F0 0F0 0B0 0F1 0B1")
    with pytest.raises(ProgramError, match="rank 0: 0F0: it appears twice"):
        verify(lower(twice, (0,), 2))
    stuck: tuple[tuple[Compute, ...], ...] = (
        (Forward(0, 0), Backward(0, 0), Forward(0, 1), Backward(0, 1)),
        (Forward(1, 0), Forward(1, 1), Backward(1, 0), Backward(1, 1)),
    )
    accepted_there("0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1")
    with pytest.raises(ProgramError, match="deadlock"):
        verify(lower(stuck, (0, 1), 2))
