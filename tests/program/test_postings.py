"""Why: sends and receives decide whether long transfers hold ranks up, and how many tensors lie about meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evenflow.cost import LinkCost, RankCost, StageCost, StageMemory
from evenflow.program import (
    Backward,
    Forward,
    ReceiveBackward,
    ReceiveForward,
    build_program,
    compute_order,
    default_stage_rank,
    evaluation_program,
    even_work,
    lower,
    peak_bytes,
    receive_buffers,
    verify,
)
from evenflow.program.times import encode, order_times
from evenflow.simulate import Hardware, step_seconds

HIDDEN = 100  # bytes of what crosses stages


def _work(schedule, ranks, microbatches, transfer_s, costs=None):
    stage_rank = default_stage_rank(schedule, ranks)
    work = even_work(stage_rank, microbatches)
    return replace(work, transfer_s=(transfer_s,) * (work.stages - 1), costs=costs or work.costs)


def _step(program, work, transfer_s):
    boundary = [StageMemory(0, 0, 0, 0, 1, 1, 0, 0)] * work.stages
    ranks = [RankCost(0.0, 0.0)] * work.ranks
    return step_seconds(program, Hardware(work.costs, ranks, LinkCost(transfer_s, float("inf")), boundary))


def _boundary_bytes(program):
    """The most that each rank holds where only what crosses stages has any size."""
    last = program.stages - 1
    memory = [
        StageMemory(0, 0, 0, 0, HIDDEN * (stage > 0), HIDDEN * (stage < last), 0, 0) for stage in range(program.stages)
    ]
    return [peak_bytes(program, memory, rank) for rank in range(len(program.ranks))]


@pytest.mark.parametrize("transfer_s", [0.5, 2.0, 5.0, 9.0])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb-h2", "interleaved", "zb-v", "zb-2p"])
def test_a_transfer_of_several_actions_is_hidden_where_the_order_lets_it(schedule, transfer_s):
    """Nothing is faster than the order's own times, in which every receive is there and nobody waits for a send."""
    work = _work(schedule, 6, 24, transfer_s)
    order = compute_order(schedule, work.stage_rank, 24, work)
    program = lower(order, work.stage_rank, 24, work)
    verify(program)
    ideal = order_times(encode(order, work), work).makespan
    assert _step(program, work, transfer_s) == pytest.approx(ideal, rel=0.01)


@pytest.mark.parametrize(("transfer_s", "most"), [(2.0, 1.001), (3.0, 1.001), (5.0, 1.1)])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb-h2", "interleaved"])
def test_without_costs_a_transfer_of_three_actions_is_hidden(schedule, transfer_s, most):
    work = _work(schedule, 8, 32, transfer_s)
    program = build_program(schedule, work.stage_rank, 32)
    order = compute_order(schedule, work.stage_rank, 32)
    ideal = order_times(encode(order, work), work).makespan
    assert _step(program, work, transfer_s) <= most * ideal


@pytest.mark.parametrize("transfer_s", [None, 0.0, 5.0, 1e6])
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb-h1", "zb-h2", "zb-v"])
def test_memory_does_not_grow_with_microbatches(schedule, transfer_s):
    """`None`: no costs are known. A link a million times slower than a stage is no reason to hold everything."""

    def most(microbatches):
        work = None if transfer_s is None else _work(schedule, 4, microbatches, transfer_s)
        return _boundary_bytes(build_program(schedule, default_stage_rank(schedule, 4), microbatches, work))

    assert most(48) == most(96)


def test_what_gpipe_holds_beside_its_activations_does_not_grow():
    """Its inputs stay until their backwards. Outputs and gradients under way are bounded."""

    def beside(microbatches, rank):
        work = _work("gpipe", 4, microbatches, 5.0)
        program = build_program("gpipe", work.stage_rank, microbatches, work)
        return _boundary_bytes(program)[rank] - (microbatches * HIDDEN if rank else 0)

    for rank in range(4):
        assert beside(40, rank) == beside(80, rank) <= 16 * HIDDEN


UNEVEN = (StageCost(8.0, 8.0, 4.0, 4.0), StageCost(1.0, 1.0, 0.5, 0.5), StageCost(1.0, 1.0, 0.5, 0.5))


def test_gradients_do_not_pile_up_before_a_slow_rank():
    """GPipe, the first rank eight times slower: it uses a gradient while eight more are made."""
    for m in (60, 120):
        work = _work("gpipe", 3, m, 0.1, UNEVEN)
        program = build_program("gpipe", work.stage_rank, m, work)
        verify(program)
        assert receive_buffers(program, 0) == {(0, ReceiveBackward): 32}
        ideal = order_times(encode(program.compute_order(), work), work).makespan
        assert _step(program, work, 0.1) <= ideal * 1.001


def test_an_evaluation_does_not_pile_up_inputs_before_a_rank_of_many_stages():
    for m in (50, 200):
        program = evaluation_program((0, 1, 1, 1, 1), m)
        verify(program)
        assert receive_buffers(program, 1)[1, ReceiveForward] <= 12


def test_an_order_that_must_hold_many_tensors_is_not_held_back():
    """Rank 0 runs all forwards first, rank 1 F and B in turn: 100 gradients lie at rank 0, or nothing ends."""
    m = 100
    order = (
        (*(Forward(0, k) for k in range(m)), *(Backward(0, k) for k in range(m))),
        tuple(action(1, k) for k in range(m) for action in (Forward, Backward)),
    )
    costs = (StageCost(3.0, 1.0, 0.5, 0.5), StageCost(1.0, 1.0, 0.5, 0.5))
    work = replace(even_work((0, 1), m), costs=costs)
    program = lower(order, (0, 1), m, work)
    verify(program)
    assert receive_buffers(program, 0)[0, ReceiveBackward] >= m - 2
