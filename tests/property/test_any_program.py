"""Why: examples show what we thought of; here chance picks split, costs and schedule."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evenflow.cost import MemoryModel
from evenflow.errors import ProgramError
from evenflow.plan import partition, step_bound
from evenflow.program import (
    SCHEDULES,
    Backward,
    Forward,
    Program,
    ReceiveBackward,
    ReceiveForward,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    build_program,
    lower,
    parse_ranks,
    rank_memory,
    ranks_text,
    verify,
)
from evenflow.search import try_split
from tests.property.cases import all_splits, random_costs, random_model
from tests.property.machine import Refused, run

schedules = st.sampled_from(sorted(SCHEDULES))
sizes = st.tuples(st.integers(1, 6), st.integers(1, 12))
seeds = st.integers(0, 10**6)
modest = settings(deadline=None, max_examples=150)


@modest
@given(schedules, sizes)
def test_every_schedule_lowers_to_a_program_that_is_legal_runs_and_reads_back(schedule, size):
    program = build_program(schedule, *size)
    verify(program)
    run(program)
    assert parse_ranks(ranks_text(program.ranks)) == program.ranks


@modest
@given(schedules, sizes, seeds)
def test_no_simulated_step_beats_the_bound_or_any_ranks_own_work(schedule, size, seed):
    random = Random(seed)
    stages, microbatches = size
    layers = stages + random.randint(0, 4)
    split = random.choice(list(all_splits(layers, stages)))
    costs, model = random_costs(random, layers, with_link=random.random() < 0.7), random_model(random, layers)
    timeline = try_split(split, build_program(schedule, stages, microbatches), costs, MemoryModel(model)).timeline
    assert timeline.step_s >= step_bound(costs, stages, microbatches) * (1 - 1e-9)
    for own in timeline.ranks:
        assert own.wall_s == pytest.approx(timeline.step_s)
        assert own.idle_s >= -1e-9
        assert timeline.step_s >= (own.busy_s + own.optimizer_s) * (1 - 1e-9)
    assert timeline.imbalance >= 1 - 1e-9


@modest
@given(schedules, sizes, seeds)
def test_memory_returns_to_where_it_started(schedule, size, seed):
    random = Random(seed)
    stages, microbatches = size
    model = random_model(random, stages)
    split = tuple((stage,) for stage in range(stages))
    program = build_program(schedule, stages, microbatches)
    memory = MemoryModel(model).stages(split)
    for rank in range(stages):
        held = rank_memory(program, memory, rank)
        state = memory[rank].state_bytes
        assert held[-1].after_bytes == state
        assert all(own.peak_bytes >= own.after_bytes >= state for own in held)


@modest
@given(schedules, sizes)
def test_few_buffers_are_held_however_many_microbatches_there_are(schedule, size):
    """At most two of each kind: the growth that PyTorch's runtime has is what this forbids."""
    program = build_program(schedule, *size)
    for actions in program.ranks:
        held = dict.fromkeys(("inputs", "gradients", "outputs", "input gradients"), 0)
        for action in actions:
            match action:
                case ReceiveForward():
                    held["inputs"] += 1
                case Forward(stage, _) if stage > 0:
                    held["inputs"] -= 1
                case ReceiveBackward():
                    held["gradients"] += 1
                case Backward(stage, _) if stage < program.stages - 1:
                    held["gradients"] -= 1
                case SendForward():
                    held["outputs"] += 1
                case ReleaseForward():
                    held["outputs"] -= 1
                case SendBackward():
                    held["input gradients"] += 1
                case ReleaseBackward():
                    held["input gradients"] -= 1
            assert min(held.values()) >= 0
            assert max(held.values()) <= 2, (action, held)
        assert not any(held.values())


@st.composite
def _orders(draw):
    """Compute orders nobody designed: each rank interleaves its forwards and backwards as chance has it."""
    stages, microbatches = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    ranks = []
    for stage in range(stages):
        order, forwards, backwards = [], 0, 0
        while backwards < microbatches:
            if forwards < microbatches and (forwards == backwards or draw(st.booleans())):
                order.append(Forward(stage, forwards))
                forwards += 1
            else:
                order.append(Backward(stage, backwards))
                backwards += 1
        ranks.append(tuple(order))
    return lower(tuple(ranks), tuple(range(stages)), microbatches)


@modest
@given(_orders(), seeds)
def test_any_order_is_refused_as_a_deadlock_or_runs_and_the_simulator_agrees(program, seed):
    costs = random_costs(Random(seed), program.stages)
    memory = MemoryModel(random_model(Random(seed), program.stages))
    split = tuple((stage,) for stage in range(program.stages))
    if _is_accepted(program):
        run(program)
        timeline = try_split(split, program, costs, memory).timeline
        assert timeline.step_s >= step_bound(costs, program.stages, program.microbatches) * (1 - 1e-9)
    else:
        with pytest.raises(Refused, match="deadlock"):
            run(program)


@settings(deadline=None, max_examples=400)
@given(schedules, st.tuples(st.integers(1, 3), st.integers(1, 4)), st.data())
def test_what_verify_accepts_is_what_a_machine_without_tags_can_run(schedule, size, data):
    """Legal programs with one or two actions moved: verify and a machine that knows no rule must agree."""
    program = build_program(schedule, *size)
    for _ in range(data.draw(st.integers(1, 2))):
        rank = data.draw(st.integers(0, len(program.ranks) - 1))
        actions = list(program.ranks[rank])
        moved = actions.pop(data.draw(st.integers(0, len(actions) - 1)))
        actions.insert(data.draw(st.integers(0, len(actions))), moved)
        program = replace(program, ranks=(*program.ranks[:rank], tuple(actions), *program.ranks[rank + 1 :]))
    refusal = _refusal(program)
    assert _is_accepted(program) == (refusal is None), f"{refusal}\n{ranks_text(program.ranks)}"


@modest
@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=40), st.data())
def test_a_partition_holds_every_layer_once_and_more_stages_never_hurt(seconds, data):
    stages = data.draw(st.integers(1, len(seconds)))
    split = partition(seconds, stages)
    assert split is not None
    assert len(split) == stages
    assert all(split)
    assert [layer for layers in split for layer in layers] == list(range(len(seconds)))
    bottleneck = max(sum(seconds[layer] for layer in layers) for layers in split)
    assert bottleneck >= max(max(seconds), sum(seconds) / stages) * (1 - 1e-9)
    assume(stages > 1)
    fewer = partition(seconds, stages - 1)
    assert fewer is not None
    assert bottleneck <= max(sum(seconds[layer] for layer in layers) for layers in fewer) * (1 + 1e-9)


def _refusal(program: Program) -> str | None:
    try:
        run(program)
    except Refused as refusal:
        return str(refusal)
    return None


def _is_accepted(program: Program) -> bool:
    try:
        verify(program)
    except ProgramError:
        return False
    return True
