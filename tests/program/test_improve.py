"""Why: local improvement works on orders of its own making, which may keep no promise of those it began with."""

from __future__ import annotations

import sys
from dataclasses import replace
from math import inf
from random import Random

import pytest

from evenflow.cost import StageCost
from evenflow.program import SCHEDULES, compute_order, even_work, lower, misfit, place, verify
from evenflow.program.schedules.improve import counted_peak, improve
from evenflow.program.times import decode, encode, order_times

improving = sys.modules["evenflow.program.schedules.improve"]


def _objective(times):
    return max(ends[-1] for ends in times.end), sum(ends[-1] for ends in times.end)


def _case(seed):
    """A named order on stages that it does not suit, under the very memory that it needs or a little more."""
    random = Random(seed)
    ranks = random.randint(2, 4)
    stage_rank = place(random.choice(["loop", "v"]), ranks, random.choice([ranks, ranks, 2 * ranks]))
    microbatches = random.randint(2, 8)
    seconds = [[random.choice([1.0, random.uniform(0, 2)]) for _ in range(3)] for _ in stage_rank]
    work = replace(
        even_work(stage_rank, microbatches),
        costs=tuple(StageCost(f, i + w, i, w) for f, i, w in seconds),
        transfer_s=(random.choice([0.0, 0.1, 1.0]),) * (len(stage_rank) - 1),
    )
    names = [name for name, own in SCHEDULES.items() if not own.by_costs and misfit(name, stage_rank) is None]
    coded = encode(compute_order(random.choice(names), stage_rank, microbatches, work), work)
    room = random.choice([1.0, 1.0, 1.5])
    return replace(work, cap=tuple(room * counted_peak(actions, work) for actions in coded)), coded


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_a_deadlocks_critical_path_is_never_followed(first, monkeypatch):
    """It leads round in a circle. Several exchanges at once make such orders: they are dropped."""
    followed = []
    blocks = improving._Search._blocks

    def watched(search, found, begins):
        followed.append(found.times.makespan < inf)
        return blocks(search, found, begins) if followed[-1] else iter(())

    monkeypatch.setattr(improving._Search, "_blocks", watched)
    for seed in range(first, first + 20):
        work, coded = _case(seed)
        improve(work, coded, [0.0] * work.ranks, 150)
    assert followed
    assert all(followed)


def test_what_is_improved_is_a_legal_order_that_is_no_slower_in_the_same_memory():
    faster = 0
    for seed in range(40):
        work, coded = _case(seed)
        before = _objective(order_times(coded, work))
        improved, score = improve(work, coded, [0.0] * work.ranks, 200)
        assert score <= before
        assert score == _objective(order_times(improved, work))
        for actions, cap in zip(improved, work.cap, strict=True):
            assert counted_peak(actions, work) <= cap * (1 + 1e-9)
        verify(lower(decode(improved, work), work.stage_rank, work.microbatches, work))
        faster += score[0] < before[0] * (1 - 1e-6)
    assert faster >= 15
