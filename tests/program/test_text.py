"""Why: programs are shared as text, with people and PyTorch's parser: a token must mean one thing to both."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from evenflow.errors import ProgramError
from evenflow.program import (
    SCHEDULES,
    Action,
    Backward,
    Forward,
    InputBackward,
    Norm,
    ReceiveBackward,
    ReceiveForward,
    ReduceGrad,
    ReduceTied,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    Step,
    WeightBackward,
    action_kind,
    action_text,
    build_program,
    lower,
    order_csv,
    order_text,
    parse_action,
    parse_order,
    parse_order_csv,
    parse_ranks,
    ranks_text,
    verify,
)

TOKENS = {
    "2F0": Forward(2, 0),
    "10B31": Backward(10, 31),
    "1I3": InputBackward(1, 3),
    "0W5": WeightBackward(0, 5),
    "0SEND_F3": SendForward(0, 3),
    "1RECV_F3": ReceiveForward(1, 3),
    "1SEND_B0": SendBackward(1, 0),
    "0RECV_B12": ReceiveBackward(0, 12),
    "0RELEASE_F3": ReleaseForward(0, 3),
    "7RELEASE_B2": ReleaseBackward(7, 2),
    "3REDUCE_TIED": ReduceTied(3),
    "12REDUCE_GRAD": ReduceGrad(12),
    "NORM": Norm(),
    "STEP": Step(),
}


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_is_its_action_and_back(token):
    assert parse_action(token) == TOKENS[token]
    assert action_text(TOKENS[token]) == token
    assert action_kind(TOKENS[token]) == token.strip("0123456789")


def test_every_action_is_tried_above():
    assert {type(action) for action in TOKENS.values()} == set(get_args(Action))


@pytest.mark.parametrize("token", TOKENS)
def test_pytorch_reads_our_tokens_as_we_do_or_not_at_all(token):
    """Its parser matches only the beginning: `0FREE3` would be read as `0F` without a word."""
    theirs = pytest.importorskip("torch.distributed.pipelining.schedules")
    word = action_kind(TOKENS[token])
    if word in {kind.value for kind in theirs._ComputationType}:
        read = theirs._Action.from_str(token)
        action = TOKENS[token]
        assert not isinstance(action, Norm | Step)
        microbatch = getattr(action, "microbatch", None)
        assert (read.stage_index, read.computation_type.value, read.microbatch_index) == (
            action.stage,
            word,
            microbatch,
        )
        assert str(read) == token
    else:
        assert word[0] not in "FBIW"
        with pytest.raises(RuntimeError, match="Invalid action string"):
            theirs._Action.from_str(token)


@pytest.mark.parametrize(
    "token",
    [
        *("F0", "2F", "2f0", "2FREE0", "2U0", "-1F0", "2F0x", "0NORM0", "norm", "2SEND0", "SEND_F"),
        *("2REDUCE_GRAD0", "2REDUCE", "REDUCE_TIED", "2W"),
        "",
        "2F0 ",
        "(0F0;1B0)OVERLAP_F_B",
    ],
)
def test_what_is_no_action_is_refused_with_the_words_that_are(token):
    with pytest.raises(ProgramError, match=r"is not an action; actions look like 2F0 and .*RECV_B.*NORM") as caught:
        parse_action(token)
    assert repr(token) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize(("p", "m"), [(1, 1), (2, 3), (4, 8), (7, 11)])
def test_programs_round_trip(schedule, p, m):
    program = build_program(schedule, p, m, reduces=True, tied=[(0, 1)] if p > 1 else ())
    text = ranks_text(program.ranks)
    assert text.count("\n") == p
    assert parse_ranks(text) == program.ranks
    order = program.compute_order()
    assert parse_order(order_text(order)) == order
    assert parse_order_csv(order_csv(order)) == order


@pytest.mark.parametrize("forward_only", [True, False])
def test_a_rank_without_actions_keeps_its_line(forward_only):
    order = ((Forward(0, 0),), (), (Forward(1, 0),))
    if not forward_only:
        order = ((*order[0], Backward(0, 0)), (), (*order[2], Backward(1, 0)))
    program = lower(order, (0, 2), 1, forward_only=forward_only)
    verify(program)
    assert parse_ranks(ranks_text(program.ranks)) == program.ranks
    assert (ranks_text(program.ranks).splitlines()[1] == "-") == forward_only
    assert parse_order_csv(order_csv(order)) == order
    assert parse_order(order_text(order)) == order


@pytest.mark.parametrize(
    "token", ["\u0663F\u0660", "0F\u0661", "\uff11F0", "9" * 5000 + "F0", "0F" + "9" * 5000, "1" * 10 + "F0"]
)
def test_numbers_are_a_few_of_our_own_digits(token):
    with pytest.raises(ProgramError, match="is not an action") as caught:
        parse_action(token)
    assert len(str(caught.value)) < 300
    for parse in (lambda: parse_order((token,)), lambda: parse_order_csv(token), lambda: parse_ranks(token)):
        with pytest.raises(ProgramError) as caught:
            parse()
        assert len(str(caught.value)) < 350


def test_a_cell_of_any_length_is_refused_in_one_line():
    with pytest.raises(ProgramError, match="it is not CSV: field larger than field limit"):
        parse_order_csv("0F0," + "9" * 200_000)


def test_comments_and_empty_lines_are_passed_over():
    assert parse_ranks("# a comment\n\n0F0 0B0\n   \n  # another\n1F0\n") == (
        (Forward(0, 0), Backward(0, 0)),
        (Forward(1, 0),),
    )


def test_an_error_names_the_line_as_an_editor_counts_it():
    with pytest.raises(ProgramError, match=r"line 4: '1G0' is not an action"):
        parse_ranks("# header\n0F0 0B0\n\n1F0 1G0 1B0\n")


def test_an_order_is_compute_alone():
    with pytest.raises(ProgramError, match=r"^rank 1: '1SEND_F0' is not a compute action; 2F0, 2B0, 2I0 or 2W0 are$"):
        parse_order(("0F0 0B0", "1F0 1SEND_F0"))
    with pytest.raises(ProgramError, match=r"^row 2, column 3: 'NORM' is not a compute action"):
        parse_order_csv("0F0,0B0\n1F0,,NORM\n")


def test_csv_as_pytorch_writes_it_idles_and_overlaps():
    """Empty cells are its idle time; a forward and a backward in one cell are two actions here, one after another."""
    theirs = "0F0,,0F1 ,(0F2;0B0)OVERLAP_F_B,0I1,,0W1\r\n,,\r\n"
    assert order_text(parse_order_csv(theirs)) == ("0F0 0F1 0F2 0B0 0I1 0W1", "")
    assert order_csv(parse_order_csv(theirs)) == "0F0,0F1,0F2,0B0,0I1,0W1\n\n"


def test_actions_are_inert():
    for action in TOKENS.values():
        assert dataclasses.is_dataclass(action)
        assert not [name for name in dir(action) if not name.startswith("_") and callable(getattr(action, name))]
