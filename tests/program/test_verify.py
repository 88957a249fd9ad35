"""Why: what verify lets through is run as it is, so each way of being wrong is tried and must be named."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest

from evenflow.cost import LinkCost, RankCost, StageCost, StageMemory
from evenflow.errors import ProgramError
from evenflow.program import (
    SCHEDULES,
    Backward,
    Compute,
    Forward,
    Norm,
    Program,
    Step,
    action_text,
    build_program,
    default_stage_rank,
    evaluation_program,
    even_work,
    lower,
    peak_bytes,
    verify,
)
from evenflow.simulate import Hardware, simulate
from tests.program.lines import after, moved, refusal_of, with_rank, without
from tests.property.cases import NO_MEMORY, program_of

RANK_0 = "0F0 0SEND_F0 0RECV_B0 0F1 0SEND_F1 0RECV_B1 0B0 0B1 0RELEASE_F0 0RELEASE_F1 NORM STEP"
RANK_1 = "1RECV_F0 1F0 1RECV_F1 1B0 1SEND_B0 1F1 1B1 1SEND_B1 1RELEASE_B0 1RELEASE_B1 NORM STEP"

SMALL = [(name, p, m) for name in SCHEDULES for p, m in [(1, 1), (1, 3), (2, 2), (3, 2), (3, 4)]]


def _program(rank_0=RANK_0, rank_1=RANK_1):
    return program_of(f"{rank_0}\n{rank_1}\n", (0, 1), 2)


def test_what_is_broken_below_is_legal_to_begin_with():
    verify(_program())
    assert _program() == build_program("1f1b", 2, 2, even_work((0, 1), 2))


@pytest.mark.parametrize(
    ("rank_0", "rank_1", "message"),
    [
        pytest.param(after(RANK_0, "0F0", "0F0"), RANK_1, "rank 0: 0F0: it appears twice", id="duplicate-forward"),
        pytest.param(RANK_0, after(RANK_1, "1B0", "1B0"), "rank 1: 1B0: it appears twice", id="duplicate-backward"),
        pytest.param(
            after(RANK_0, "0SEND_F0", "0SEND_F0"),
            RANK_1,
            "rank 0: 0SEND_F0: it appears twice",
            id="duplicate-send",
        ),
        pytest.param(after(RANK_0, "NORM", "NORM"), RANK_1, "rank 0: NORM: it appears twice", id="duplicate-norm"),
        pytest.param(
            RANK_0,
            without(without(RANK_1, "1B1"), "1SEND_B1").replace("1RELEASE_B1 ", ""),
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
            without(RANK_0, "0F0"),
            RANK_1,
            "rank 0: 0SEND_F0: its output does not exist here",
            id="missing-forward",
        ),
        pytest.param(after(RANK_0, "0F0", "1F0"), RANK_1, "rank 0: 1F0: stage 1 is not on this rank", id="wrong-rank"),
        pytest.param(
            after(RANK_0, "0F0", "2F0"),
            RANK_1,
            "rank 0: 2F0: stage 2 is not on this rank",
            id="no-such-stage",
        ),
        pytest.param(
            after(RANK_0, "0F0", "0F2"),
            RANK_1,
            "rank 0: 0F2: microbatches run from 0 to 1",
            id="no-such-microbatch",
        ),
        pytest.param(
            moved(RANK_0, "0SEND_F0", before="0F0"),
            RANK_1,
            "rank 0: 0SEND_F0: its output does not exist here",
            id="send-before-forward",
        ),
        pytest.param(
            RANK_0,
            moved(RANK_1, "1SEND_B0", before="1B0"),
            "rank 1: 1SEND_B0: its input gradient does not exist here",
            id="send-before-backward",
        ),
        pytest.param(
            RANK_0,
            without(RANK_1, "1RECV_F0"),
            "rank 1: 1F0: its input was not received",
            id="receive-forward-missing",
        ),
        pytest.param(
            without(RANK_0, "0RECV_B0"),
            RANK_1,
            "rank 0: 0B0: its output gradient was not received",
            id="receive-backward-missing",
        ),
        pytest.param(
            RANK_0,
            moved(RANK_1, "1F1", before="1RECV_F1"),
            "rank 1: 1F1: its input was not received",
            id="forward-before-receive",
        ),
        pytest.param(
            moved(RANK_0, "0B1", before="0F1"),
            RANK_1,
            "rank 0: 0B1: its forward has not run",
            id="backward-before-forward",
        ),
        pytest.param(
            moved(RANK_0, "0RECV_B1", before="0RECV_B0"),
            RANK_1,
            "rank 1 to rank 0: message 0 is 1SEND_B0 where it is sent, but 1SEND_B1 is expected where it is received",
            id="receives-swapped",
        ),
        pytest.param(
            RANK_0,
            moved(RANK_1, "1RECV_F1", before="1RECV_F0"),
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
            moved(RANK_0, "0RELEASE_F0", before="0SEND_F0"),
            RANK_1,
            "rank 0: 0RELEASE_F0: it was not sent",
            id="released-before-sent",
        ),
        pytest.param(
            RANK_0,
            moved(RANK_1, "1RELEASE_B0", before="1SEND_B0"),
            "rank 1: 1RELEASE_B0: it was not sent",
            id="gradient-released-before-sent",
        ),
        pytest.param(without(RANK_0, "0RELEASE_F0"), RANK_1, "rank 0: NORM: 0SEND_F0 is still held", id="leak-forward"),
        pytest.param(
            RANK_0,
            without(RANK_1, "1RELEASE_B1"),
            "rank 1: NORM: 1SEND_B1 is still held",
            id="leak-backward",
        ),
        pytest.param(
            without(RANK_0, "0SEND_F1").replace("0RELEASE_F1 ", ""),
            RANK_1,
            "rank 0: 0SEND_F1: it is missing",
            id="send-missing",
        ),
        pytest.param(
            RANK_0,
            without(RANK_1, "1SEND_B1").replace("1RELEASE_B1 ", ""),
            "rank 1: 1SEND_B1: it is missing",
            id="send-backward-missing",
        ),
        pytest.param(
            moved(RANK_0, "0RELEASE_F1", before="STEP"),
            RANK_1,
            "rank 0: NORM: 0SEND_F1 is still held",
            id="released-after-norm",
        ),
        pytest.param(RANK_0 + " 0F0", RANK_1, "rank 0: 0F0: it comes after STEP", id="forward-after-step"),
        pytest.param(RANK_0, RANK_1 + " NORM", "rank 1: NORM: it comes after STEP", id="norm-after-step"),
        pytest.param(RANK_0 + " STEP", RANK_1, "rank 0: STEP: it comes after STEP", id="second-step"),
        pytest.param(without(RANK_0, "NORM"), RANK_1, "rank 0: STEP: NORM has not run", id="missing-norm"),
        pytest.param(RANK_0, without(RANK_1, "STEP"), "rank 1: STEP: it is missing", id="missing-step"),
        pytest.param(
            after(RANK_0, "0F0", "0RECV_F0"),
            RANK_1,
            "rank 0: 0RECV_F0: the first stage has nobody before it",
            id="first-stage-receives",
        ),
        pytest.param(
            after(RANK_0, "0B0", "0SEND_B0"),
            RANK_1,
            "rank 0: 0SEND_B0: the first stage has nobody before it",
            id="first-stage-sends-back",
        ),
        pytest.param(
            RANK_0,
            after(RANK_1, "1F0", "1SEND_F0"),
            "rank 1: 1SEND_F0: the last stage has nobody after it",
            id="last-stage-sends",
        ),
        pytest.param(
            RANK_0,
            after(RANK_1, "1F0", "1RECV_B0"),
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
            moved(moved(RANK_0, "0RELEASE_F0", before="0RECV_B0"), "0RELEASE_F1", before="0RECV_B1"),
            moved(moved(RANK_1, "1RELEASE_B0", before="1F1"), "1RECV_F1", before="1F1"),
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
            f"{RANK_0}\n{moved(moved(RANK_1, '1SEND_B1', before='STEP'), '1RELEASE_B1', before='STEP')}",
            (0, 1),
            2,
            "rank 1: 1SEND_B1: ",
            id="send-after-norm",
        ),
        pytest.param(
            f"{RANK_0}\n{without(moved(RANK_1, '1SEND_B1', before='STEP'), '1RELEASE_B1')}",
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


def test_a_cap_names_the_action_that_exceeds_it():
    """Stage 0 keeps 5 bytes a microbatch: 10 after its second forward, which itself takes 7 in passing."""
    memory = [StageMemory(0, 100, 5, 0, 0, 0, 7, 1), NO_MEMORY]
    verify(_program(), memory, [112, 0])
    with pytest.raises(ProgramError, match=r"^rank 0: 0F1: the rank holds 112 B of 111 B$"):
        verify(_program(), memory, [111, 0])


def test_bytes_without_caps_must_all_be_freed():
    """What stage 0 makes is 5 bytes; stage 1, on the same rank, is said to take in 3 of them."""
    memory = [StageMemory(0, 100, 0, 0, 0, 5, 0, 0), StageMemory(0, 0, 0, 0, 3, 0, 0, 0)]
    with pytest.raises(ProgramError, match=r"^rank 0: at its end: 4 B are still held$"):
        verify(evaluation_program((0, 0), 2), memory)
    memory[1] = replace(memory[1], input_bytes=7)
    with pytest.raises(ProgramError, match=r"^rank 0: 1F1: it frees more bytes than are held$"):
        verify(evaluation_program((0, 0), 2), memory)
    verify(evaluation_program((0, 0), 2), [memory[0], replace(memory[1], input_bytes=5)])


def test_a_rank_without_actions_holds_nothing_and_breaks_no_cap():
    program = lower(((Forward(0, 0),), (), (Forward(1, 0),)), (0, 2), 1, forward_only=True)
    memory = [StageMemory(0, 10, 0, 0, 0, 1, 0, 0), StageMemory(0, 20, 0, 0, 1, 0, 0, 0)]
    verify(program, memory, [12, 0, 22])
    assert [peak_bytes(program, memory, rank) for rank in range(3)] == [11, 0, 21]
    timeline = simulate(
        program, Hardware([StageCost(1.0, 0.0, 0.0, 0.0)] * 2, [RankCost(0.0, 0.0)] * 3, LinkCost(0.0, 1.0), memory)
    )
    assert [own.peak_bytes for own in timeline.ranks] == [11, 0, 21]


@pytest.mark.parametrize(
    ("memory", "caps", "message"),
    [
        (None, [1, 1], "caps are held against bytes of each stage; with memory they can be"),
        ([NO_MEMORY], None, "memory is of 1 stages; the program has 2"),
        ([NO_MEMORY] * 2, [1], "caps are of 1 ranks; the program has 2"),
        ([NO_MEMORY] * 2, [inf, nan], "caps: rank 1 may hold nan bytes; a number, inf for no cap, would do"),
    ],
)
def test_bytes_and_caps_are_for_all_stages_and_ranks(memory, caps, message):
    with pytest.raises(ProgramError) as caught:
        verify(_program(), memory, caps)
    assert str(caught.value) == message


def test_numbers_beyond_any_program_are_refused():
    with pytest.raises(ProgramError, match="a stage or microbatch is numbered beyond what any program has"):
        verify(Program((0,), 1, ((Forward(10**30, 0),),)))


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
            refusal = refusal_of(with_rank(program, rank, shorter))
            assert refusal is not None, f"{action_text(action)} of rank {rank} was not missed"
            assert f"rank {rank}" in refusal


@pytest.mark.parametrize(("schedule", "p", "m"), SMALL)
def test_nothing_can_be_done_twice(schedule, p, m):
    program = _small(schedule, p, m)
    for rank, actions in enumerate(program.ranks):
        for position, action in enumerate(actions):
            for again in {position + 1, (position + 1 + len(actions)) // 2, len(actions)}:
                refusal = refusal_of(with_rank(program, rank, (*actions[:again], action, *actions[again:])))
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
                assert refusal_of(with_rank(program, other, (action, *program.ranks[other]))) == message


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
