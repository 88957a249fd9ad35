"""Why: the paper's greedy is the floor of ZB-1p and ZB-2p: its figures and its caps are held to, whatever the costs."""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random

import pytest

from evenflow.cost import StageCost
from evenflow.program import (
    Forward,
    Work,
    action_text,
    compute_order,
    even_work,
    lower,
    stages_of,
    verify,
)
from evenflow.program.schedules.in_turn import Ways, all_ways, in_turn
from evenflow.program.schedules.in_turn import __doc__ as MODULE
from evenflow.program.times import decode, encode, order_times


def _even(p, m, forward_s, input_s, weight_s, transfer_s, cap):
    costs = (StageCost(forward_s, input_s + weight_s, input_s, weight_s),) * p
    return replace(even_work(tuple(range(p)), m), costs=costs, transfer_s=(transfer_s,) * (p - 1), cap=(cap,) * p)


def _uneven(chance, p, m, cap):
    costs = tuple(
        StageCost(forward, half + weight, half, weight)
        for forward, half, weight in ([chance.uniform(0.2, 3.0) for _ in range(3)] for _ in range(p))
    )
    there, back = ([chance.choice((0.0, 0.3, 4.0)) for _ in range(p - 1)] for _ in range(2))
    return Work(
        stage_rank=tuple(chance.sample(range(p), p)),
        microbatches=m,
        costs=costs,
        transfer_s=tuple(there),
        saved=(1.0,) * p,
        pending=(0.5,) * p,
        cap=(float(cap),) * p,
        back_s=tuple(back),
    )


def _peak(actions):
    held = peak = 0.0
    for action in actions:
        held += 1.0 if isinstance(action, Forward) else -0.5
        peak = max(peak, held)
    return peak


def _rate(coded, work):
    cost = work.costs[0]
    busy_s = work.microbatches * (cost.forward_s + cost.backward_s)
    return 1 - busy_s / order_times(coded, work).longest_span


@pytest.mark.parametrize("p", [1, 2, 3, 5, 8])
def test_all_ways_are_legal_and_under_the_cap_whatever_the_costs(p):
    chance = Random(p)
    for m in (1, p, 2 * p - 1, 2 * p + 1, 4 * p + 1):
        for cap in (p, p + 1, 2 * p):
            work = _uneven(chance, p, m, cap)
            for ways in all_ways():
                coded = in_turn(work, ways)
                assert coded is not None
                order = decode(coded, work)
                for rank, actions in enumerate(order):
                    stages = stages_of(work.stage_rank, rank)
                    assert {action.stage for action in actions} == set(stages)
                    assert len(actions) == len(set(actions)) == 3 * m
                    assert _peak(actions) <= cap
                verify(lower(order, work.stage_rank, m, work=work))


def test_there_is_none_where_the_caps_hold_fewer_microbatches_than_stages():
    assert in_turn(_even(4, 8, 1.0, 1.0, 1.0, 0.0, 3.0), Ways(late_start=False, skip=False, overfill="worst")) is None


@pytest.mark.parametrize("p", [2, 4, 8])
def test_no_rank_idles_where_all_take_the_same(p):
    """As ZB-H2, from m = 2p - 1 on (Qi et al. 2023, arXiv:2401.10241, section 2.2)."""
    for m in (2 * p - 1, 4 * p):
        work = _even(p, m, 1.0, 1.0, 1.0, 0.0, 2.0 * p)
        assert min(_rate(in_turn(work, ways), work) for ways in all_ways()) == pytest.approx(0.0, abs=1e-9)


def test_the_picture_is_what_is_made():
    """Three ranks, six microbatches, room for four of them: every action stands in the column in which it begins."""
    work = _even(3, 6, 1.0, 1.0, 1.0, 0.0, 4.0)
    order = decode(in_turn(work, Ways(late_start=False, skip=False, overfill="worst")), work)
    times = order_times(encode(order, work), work)
    for rank, (actions, starts) in enumerate(zip(order, times.start, strict=True)):
        line = next(line for line in MODULE.splitlines() if line.startswith(f"    rank {rank} | "))
        cells = {(at.start() - 13) // 3: at[0] for at in re.finditer(r"[FIW]\d", line)}
        texts = [action_text(action)[1:] for action in actions]
        assert cells == dict(zip(map(int, starts), texts, strict=True))


# 28.3B of the paper on 32 ranks: microbatches, ms of F, I, W and a transfer; and the rate of the paper's greedy.
LARGE = [(96, 10.419, 10.207, 7.715, 0.408, 0.0038), (128, 10.408, 10.204, 7.703, 0.408, 0.0029)]
LARGE += [(256, 10.402, 10.248, 7.698, 0.460, 0.0018)]


@pytest.mark.parametrize(("m", "forward_s", "input_s", "weight_s", "transfer_s", "rate"), LARGE)
def test_zb_2p_idles_no_more_than_the_papers_greedy_on_many_ranks(m, forward_s, input_s, weight_s, transfer_s, rate):
    work = _even(32, m, forward_s, input_s, weight_s, transfer_s, 64.0)
    order = compute_order("zb-2p", range(32), m, work)
    assert round(_rate(encode(order, work), work), 4) <= rate
    assert max(map(_peak, order)) <= 64
