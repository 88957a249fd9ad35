"""Why: examples show what we thought of; here chance picks schedule, placement, split and costs."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evenflow.cost import LinkCost, Links, MemoryModel
from evenflow.errors import ProgramError
from evenflow.plan import partition
from evenflow.program import (
    SCHEDULES,
    Backward,
    Forward,
    InputBackward,
    Program,
    ReceiveBackward,
    ReceiveForward,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    Step,
    WeightBackward,
    compute_order,
    default_stage_rank,
    lower,
    order_csv,
    parse_order_csv,
    parse_ranks,
    place,
    rank_memory,
    ranks_text,
    verify,
)
from evenflow.simulate import simulate, step_seconds
from evenflow.timeline import idle_by_cause
from tests.property.cases import random_costs, random_model, split_hardware
from tests.property.machine import run
from tests.property.strategies import any_program, seeds
from tests.sweeps import examples

modest = examples(25, 200)


@modest
@given(any_program)
def test_every_schedule_lowers_to_a_program_that_is_legal_runs_and_reads_back(program):
    verify(program)
    run(program)
    assert parse_ranks(ranks_text(program.ranks)) == program.ranks
    order = program.compute_order()
    assert parse_order_csv(order_csv(order)) == order


@modest
@given(any_program)
def test_the_graphs_nodes_stand_behind_what_they_wait_for_and_every_action_is_on_it(program):
    graph, table = program.graph, program.table
    nodes = np.arange(1, len(graph.after))
    for needs in (graph.after, graph.needs, graph.also):
        assert (needs[1:] < nodes).all()
    own = graph.row_node[graph.row_node >= 0]
    assert len(set(own.tolist())) == len(own)
    assert (graph.row_actions > 0).all()  # each row is counted from a node of its own rank
    assert (graph.edge >= 0).sum() == table.is_kind(SendForward, SendBackward).sum()
    actions = [action for rank in program.ranks for action in rank]
    for code, kind in ((0, Forward), (1, Backward), (2, InputBackward), (3, WeightBackward)):
        assert [type(actions[row]) for row in np.flatnonzero(table.kind == code)] == [kind] * (table.kind == code).sum()
        rows = table.rows(kind, program.stages, program.microbatches)
        for stage, microbatch in np.argwhere(rows >= 0):
            assert actions[rows[stage, microbatch]] == kind(stage, microbatch)


def _hardware(program: Program, seed: int):
    """One layer a stage; transfers of any kind, or free ones; reductions; now and then fewer processors than ranks."""
    random = Random(seed)
    model = random_model(random, program.stages)
    costs = random_costs(random, program.stages, with_link=random.random() < 0.7)
    ranks = range(len(program.ranks))
    edges = [(one, other) for one in ranks for other in ranks if one != other]
    slow = {
        edge: LinkCost(random.uniform(0.0, 2.0), random.uniform(5.0, 50.0)) for edge in edges[:: random.randint(1, 5)]
    }
    shared = (frozenset(edges[::2]),) if random.random() < 0.2 else ()
    return split_hardware(
        program,
        tuple((stage,) for stage in range(program.stages)),
        costs,
        model,
        links=Links(costs.link, slow, shared) if random.random() < 0.4 else costs.link,
        reduce_grad_s=[random.uniform(0.0, 3.0) for _ in range(program.stages)],
        reduce_tied_s=[random.uniform(0.0, 3.0) for _ in program.tied],
        overhead_s=random.choice([0.0, 0.01]),
        speeds=[random.uniform(0.5, 2.0) for _ in ranks] if random.random() < 0.3 else None,
        at_once=random.randint(1, len(ranks)) if random.random() < 0.4 else None,
    )


@modest
@given(any_program, seeds)
def test_no_simulated_step_beats_any_ranks_own_work_and_its_seconds_alone_are_the_same(program, seed):
    hardware = _hardware(program, seed)
    timeline = simulate(program, hardware)
    assert step_seconds(program, hardware) == pytest.approx(timeline.step_s, rel=1e-12)
    for own, causes in zip(timeline.ranks, idle_by_cause(timeline), strict=True):
        assert own.idle_s >= -1e-9
        assert sum(causes.values()) == pytest.approx(own.idle_s, abs=1e-9)
    alone = [_own_seconds(program, hardware, rank) for rank in range(len(program.ranks))]
    if hardware.at_once is None:
        assert [own.wall_s for own in timeline.ranks] == pytest.approx([timeline.step_s] * len(alone))
        assert [own.busy_s for own in timeline.ranks] == pytest.approx(alone)
    else:
        assert timeline.step_s >= sum(alone) / hardware.at_once * (1 - 1e-9)
        assert all(own.busy_s >= least * (1 - 1e-9) for own, least in zip(timeline.ranks, alone, strict=True))


@modest
@given(any_program, seeds)
def test_the_engine_for_what_is_shared_agrees_with_the_other_where_nothing_is(program, seed):
    """A wire that one edge shares with none makes time be walked from event to event."""
    hardware = replace(_hardware(program, seed), links=Links(LinkCost(0.2, 40.0)), at_once=None)
    wires = (frozenset({(0, 1)}), frozenset({(1, 0)})) if len(program.ranks) > 1 else ()
    alone = replace(hardware, links=Links(LinkCost(0.2, 40.0), shared=wires))
    one, other = simulate(program, hardware), simulate(program, alone)
    for ours, theirs in zip(one.ranks, other.ranks, strict=True):
        assert (ours.begin_s, ours.end_s) == pytest.approx((theirs.begin_s, theirs.end_s))
        assert ours.starts == pytest.approx(theirs.starts)
        assert ours.ends == pytest.approx(theirs.ends)


def _own_seconds(program, hardware, rank):
    """What a rank's compute actions take when nobody is in its way."""
    seconds = 0.0
    for action in program.compute_order()[rank]:
        cost = hardware.stages[action.stage]
        names = {
            "Forward": "forward_s",
            "Backward": "backward_s",
            "InputBackward": "input_s",
            "WeightBackward": "weight_s",
        }
        seconds += getattr(cost, names[type(action).__name__])
    return seconds / (hardware.speeds[rank] if hardware.speeds else 1.0)


@modest
@given(any_program, seeds)
def test_memory_is_that_of_the_tensors_held_and_returns_to_where_it_started(program, seed):
    memory = MemoryModel(random_model(Random(seed), program.stages)).stages([(s,) for s in range(program.stages)])
    history = run(program)
    for rank, tensors in enumerate(history):
        held = rank_memory(program, memory, rank)
        mine = [memory[stage] for stage, owner in enumerate(program.stage_rank) if owner == rank]
        start = sum(own.state_bytes - own.parameter_bytes for own in mine)
        start += max((_sum(memory, now, program, rank, True) for now in tensors), default=0)
        made = _gradients(memory, program.ranks[rank])
        expected = [
            start + own + _sum(memory, now, program, rank, False) for own, now in zip(made, tensors, strict=True)
        ]
        assert held.after_bytes.tolist() == expected
        assert held.after_bytes[-1] == start
        assert (held.peak_bytes >= held.after_bytes).all()
        assert (held.peak_bytes[1:] >= held.after_bytes[:-1]).all()
        assert (held.after_bytes >= start).all()


def _sum(memory, tensors, program, rank, is_received):
    """Bytes of the tensors that came from another rank, into buffers that stay; or of the others."""
    return sum(
        _bytes(memory, (what, stage, microbatch))
        for what, stage, microbatch in tensors
        if (what in ("output", "gradient") and program.stage_rank[stage] != rank) == is_received
    )


def _gradients(memory, actions):
    """Bytes of the parameters' gradients that are there after each action."""
    made = {}
    for action in actions:
        own = memory[action.stage] if hasattr(action, "stage") else None
        match action:
            case Backward(stage):
                made[stage, "W"], made[stage, "I"] = own.weight_bytes, own.parameter_bytes - own.weight_bytes
            case InputBackward(stage):
                made[stage, "I"] = own.parameter_bytes - own.weight_bytes
            case WeightBackward(stage):
                made[stage, "W"] = own.weight_bytes
            case Step():
                made = {}
        yield sum(made.values())


def _bytes(memory, tensor):
    what, stage, _ = tensor
    sizes = {"saved": "saved_bytes", "pending": "pending_bytes", "output": "output_bytes", "gradient": "input_bytes"}
    return getattr(memory[stage], sizes[what])


@modest
@given(any_program, seeds)
def test_caps_refuse_exactly_the_programs_that_hold_more(program, seed):
    random = Random(seed)
    memory = MemoryModel(random_model(random, program.stages)).stages([(s,) for s in range(program.stages)])
    peaks = [int(rank_memory(program, memory, rank).peak_bytes.max()) for rank in range(len(program.ranks))]
    verify(program, memory, peaks)
    rank = random.randrange(len(peaks))
    caps = [peak - (number == rank) for number, peak in enumerate(peaks)]
    with pytest.raises(ProgramError, match=rf"^rank {rank}: \S+: the rank holds .* of ") as caught:
        verify(program, memory, caps)
    named = str(caught.value).split(": ")[1]
    worst = int(np.argmax(rank_memory(program, memory, rank).peak_bytes))
    assert parse_ranks(named)[0][0] == program.ranks[rank][worst]


@modest
@given(any_program)
def test_few_buffers_are_held_however_many_microbatches_there_are(program):
    """At most four sends of a stage and direction: the growth that PyTorch's runtime has is what this forbids."""
    for actions in program.ranks:
        unsent = dict.fromkeys(((kind, stage) for kind in "FB" for stage in range(program.stages)), 0)
        for action in actions:
            match action:
                case SendForward(stage, _):
                    unsent["F", stage] += 1
                case ReleaseForward(stage, _):
                    unsent["F", stage] -= 1
                case SendBackward(stage, _):
                    unsent["B", stage] += 1
                case ReleaseBackward(stage, _):
                    unsent["B", stage] -= 1
            assert max(unsent.values()) <= 4, action
        assert not any(unsent.values())


def _most_received(program: Program) -> list[int]:
    """For each rank, the most tensors that it has made room for and not yet used."""
    found = []
    where = program.stage_rank
    for actions in program.ranks:
        held = most = 0
        for action in actions:
            match action:
                case ReceiveForward() | ReceiveBackward():
                    held += 1
                case Forward(stage, _) if stage and where[stage - 1] != where[stage]:
                    held -= 1
                case Backward(stage, _) | InputBackward(stage, _) if stage + 1 < len(where):
                    held -= where[stage + 1] != where[stage]
            most = max(most, held)
        assert held == 0
        found.append(most)
    return found


# GPipe on several stages a rank takes all microbatches through a stage before the next one, and their tensors wait.
SEARCHED = ("zb-1p", "zb-2p")
FIXED = [(name, default_stage_rank(name, p)) for name in SCHEDULES for p in (2, 3, 4) if name not in SEARCHED]
FIXED += [("interleaved", place(how, p, stages)) for p, stages in [(2, 5), (3, 7), (4, 12)] for how in ("loop", "v")]


@pytest.mark.parametrize(("schedule", "ranks"), FIXED)
def test_receive_buffers_do_not_grow_with_microbatches(schedule, ranks):
    most = []
    for turns in (5, 10):
        m = turns * (max(ranks) + 1)
        most.append(_most_received(lower(compute_order(schedule, ranks, m), ranks, m)))
    assert max(most[1]) <= max(most[0])
    assert max(most[1]) <= 2 * ranks.count(0) + 2


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
