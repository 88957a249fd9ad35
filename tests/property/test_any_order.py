"""Why: what verify accepts is run, so it must agree with a machine that knows no rules, on any order whatever."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenflow.errors import ProgramError
from evenflow.program import (
    Backward,
    Forward,
    InputBackward,
    Program,
    WeightBackward,
    lower,
    ranks_text,
    verify,
)
from evenflow.program.times import encode, order_times
from evenflow.simulate import simulate
from tests.property.cases import random_costs, random_model, split_hardware
from tests.property.machine import Refused, run
from tests.property.strategies import (
    placements_nobody_designed,
    programs,
    random_order,
    random_work,
    schedules,
    seeds,
    tied_groups,
)
from tests.sweeps import examples


@st.composite
def lowered_orders(draw, together: bool) -> tuple[Program, bool]:
    """A random order, lowered with costs of any kind; and whether the compute order alone comes to its end."""
    stage_rank, microbatches = draw(placements_nobody_designed()), draw(st.integers(1, 5))
    order = random_order(Random(draw(seeds)), stage_rank, microbatches, together)
    work = draw(random_work(stage_rank, microbatches))
    more = {"reduces": draw(st.booleans()), "tied": draw(tied_groups(len(stage_rank)))}
    ends = order_times(encode(order, work), work).end
    return lower(order, stage_rank, microbatches, work, **more), all(own[-1] < inf for own in ends if own)


@examples(40, 400)
@given(lowered_orders(together=True), seeds)
def test_lowering_an_order_that_can_run_brings_no_deadlock(program_and_runs, seed):
    program, runs = program_and_runs
    assert runs
    verify(program)
    run(program)
    costs, model = random_costs(Random(seed), program.stages), random_model(Random(seed), program.stages)
    timeline = simulate(program, split_hardware(program, tuple((s,) for s in range(program.stages)), costs, model))
    assert all(timeline.step_s >= own.busy_s * (1 - 1e-9) for own in timeline.ranks)


@examples(40, 400)
@given(lowered_orders(together=False))
def test_any_order_is_refused_as_a_deadlock_or_runs(program_and_runs):
    program, runs = program_and_runs
    if runs:
        verify(program)
        run(program)
        return
    with pytest.raises(ProgramError, match=r"^deadlock: "):
        verify(program)
    with pytest.raises(Refused, match="deadlock"):
        run(program)


@examples(120, 1200)
@given(schedules.flatmap(lambda name: programs(name, most_ranks=3, most_microbatches=4)), st.data())
def test_what_verify_accepts_is_what_a_machine_without_tags_can_run(program, data):
    """Legal programs with one or two actions moved: verify and a machine that knows no rule must agree."""
    for _ in range(data.draw(st.integers(1, 2))):
        rank = data.draw(st.integers(0, len(program.ranks) - 1))
        actions = list(program.ranks[rank])
        moved = actions.pop(data.draw(st.integers(0, len(actions) - 1)))
        actions.insert(data.draw(st.integers(0, len(actions))), moved)
        program = replace(program, ranks=(*program.ranks[:rank], tuple(actions), *program.ranks[rank + 1 :]))
    _agree(program)


@examples(60, 600)
@given(schedules.flatmap(lambda name: programs(name, most_ranks=2, most_microbatches=3)), st.data())
def test_whatever_is_left_out_done_twice_or_done_elsewhere_both_refuse(program, data):
    rank = data.draw(st.integers(0, len(program.ranks) - 1))
    ranks = [list(actions) for actions in program.ranks]
    position = data.draw(st.integers(0, len(ranks[rank]) - 1))
    action = ranks[rank][position]
    if data.draw(st.booleans()):
        del ranks[rank][position]
    else:
        target = ranks[data.draw(st.integers(0, len(ranks) - 1))]
        target.insert(data.draw(st.integers(0, len(target))), action)
    broken = replace(program, ranks=tuple(map(tuple, ranks)))
    assert _refusal(broken) is not None
    with pytest.raises(ProgramError):
        verify(broken)


@st.composite
def orders_of_anything(draw):
    """Compute actions that nobody counted, some of stages and microbatches that there are not."""
    stage_rank, microbatches = draw(placements_nobody_designed()), draw(st.integers(1, 3))
    kinds = st.sampled_from([Forward, Backward, InputBackward, WeightBackward])
    actions = st.builds(
        lambda kind, stage, microbatch: kind(stage, microbatch),
        kinds,
        st.integers(0, len(stage_rank)),
        st.integers(0, microbatches),
    )
    ranks = max(stage_rank) + 1
    order = draw(st.lists(st.lists(actions, max_size=6).map(tuple), min_size=ranks, max_size=ranks))
    return tuple(order), stage_rank, microbatches


@examples(40, 300)
@given(orders_of_anything(), st.booleans())
def test_an_order_from_anywhere_is_refused_with_a_reason_or_runs(case, reduces):
    """Orders come from files: whatever stands there, lowering and verify must not break."""
    order, stage_rank, microbatches = case
    try:
        program = lower(order, stage_rank, microbatches, reduces=reduces)
        verify(program)
    except ProgramError as error:
        reason = str(error)
    else:
        reason = None
        run(program)
    assert reason is None or "\n" not in reason


def _agree(program: Program) -> None:
    """Both accept it or both refuse it."""
    try:
        verify(program)
        ours = None
    except ProgramError as error:
        ours = str(error)
    theirs = _refusal(program)
    assert (ours is None) == (theirs is None), f"{ours}; {theirs}\n{program.stage_rank}\n{ranks_text(program.ranks)}"


def _refusal(program: Program) -> str | None:
    try:
        run(program)
    except Refused as refusal:
        return str(refusal)
    return None
