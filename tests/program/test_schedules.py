"""Why: the order of compute actions is all that a schedule says; PyTorch's own are the second opinion."""

from __future__ import annotations

import pytest

from evenflow.errors import InputError
from evenflow.program import SCHEDULES, Backward, Forward, action_text, build_program, compute_order, verify

GRID = [(p, m) for p in (1, 2, 3, 4, 8) for m in (1, 2, 3, 4, 7, 16)]


@pytest.mark.parametrize(("p", "m"), GRID)
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_computes_everything_once_on_its_own_rank_in_microbatch_order(schedule, p, m):
    """The same order of backwards on every stage keeps gradient sums bitwise equal between layouts."""
    order = compute_order(schedule, p, m)
    assert len(order) == p
    for stage, actions in enumerate(order):
        assert [own for own in actions if isinstance(own, Forward)] == [Forward(stage, k) for k in range(m)]
        assert [own for own in actions if isinstance(own, Backward)] == [Backward(stage, k) for k in range(m)]
    verify(build_program(schedule, p, m))


def test_a_schedule_that_is_not_known_names_those_that_are():
    with pytest.raises(InputError, match=r"schedule 'zigzag' is not known; 1f1b, gpipe are"):
        compute_order("zigzag", 2, 2)


def _torch_tokens(name, p, m):
    visualizer = pytest.importorskip("torch.distributed.pipelining._schedule_visualizer")
    ranks = visualizer.get_schedule_ops(name, p, m)
    return [[str(action) for action in actions if action is not None and action.is_compute_op] for actions in ranks]


def _our_tokens(schedule, p, m):
    return [[action_text(action) for action in actions] for actions in compute_order(schedule, p, m)]


@pytest.mark.parametrize(("p", "m"), GRID)
def test_gpipe_is_pytorchs(p, m):
    """Torch, too, runs the backwards in the forwards' order."""
    assert _our_tokens("gpipe", p, m) == _torch_tokens("GPipe", p, m)


@pytest.mark.parametrize(("p", "m"), [(p, m) for p, m in GRID if m >= p])
def test_1f1b_is_pytorchs(p, m):
    """All ranks but the last, whose forwards torch 2.13's table numbers from 1 (its executor does not)."""
    ours, theirs = _our_tokens("1f1b", p, m), _torch_tokens("1F1B", p, m)
    assert ours[:-1] == theirs[:-1]
    last = p - 1
    assert [token.replace(f"{last}F", "F") for token in theirs[-1] if "F" in token] in (
        [f"F{k}" for k in range(m)],
        [f"F{k + 1}" for k in range(m)],
    )
    assert [token[:2] for token in theirs[-1]] == [token[:2] for token in ours[-1]] or last > 9


@pytest.mark.parametrize(("p", "m"), GRID)
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_pytorch_accepts_our_order_and_sees_it_finish(schedule, p, m):
    theirs = pytest.importorskip("torch.distributed.pipelining.schedules")
    order = {
        rank: [theirs._Action.from_str(token) for token in tokens]
        for rank, tokens in enumerate(_our_tokens(schedule, p, m))
    }
    mapping = theirs._validate_schedule(order, p, p, m)
    assert mapping == {stage: stage for stage in range(p)}
    with_transfers = theirs._add_send_recv(order, lambda stage: stage, p)
    theirs._simulate_comms_compute(with_transfers, lambda stage: stage, p)
    sends_and_receives = ("SEND_F", "RECV_F", "SEND_B", "RECV_B")
    for rank, actions in enumerate(build_program(schedule, p, m).ranks):
        ours = sorted(
            action_text(own) for own in actions if any(word in action_text(own) for word in sends_and_receives)
        )
        assert ours == sorted(
            str(own) for own in with_transfers[rank] if own.computation_type.value in sends_and_receives
        )
