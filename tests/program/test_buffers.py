"""Why: an executor makes its receive buffers once, as many as this says; one too few and a receive has no place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evenflow.cost import StageMemory
from evenflow.program import (
    SCHEDULES,
    Backward,
    Forward,
    ReceiveBackward,
    ReceiveForward,
    WeightBackward,
    buffers_at_once,
    build_program,
    evaluation_program,
    rank_memory,
    receive_buffers,
    verify,
)


def _fails_with(program, rank, pools):
    """Play a rank with pools of these sizes; the receive that finds its pool empty, or None."""
    free = dict(pools)
    ends = {ReceiveForward: (Backward, WeightBackward), ReceiveBackward: (Backward, WeightBackward)}
    if program.forward_only:
        ends[ReceiveForward] = (Forward,)
    out = set()
    for action in program.ranks[rank]:
        if isinstance(action, ReceiveForward | ReceiveBackward):
            key = action.stage, type(action)
            if not free.get(key):
                return action
            free[key] -= 1
            out.add((key, action.microbatch))
        for kind, by in ends.items():
            if isinstance(action, by) and ((action.stage, kind), action.microbatch) in out:
                out.remove(((action.stage, kind), action.microbatch))
                free[action.stage, kind] += 1
    assert free == pools, "a pool is full again at the end of a step"
    return None


def _programs():
    for name in SCHEDULES:
        for ranks, microbatches in ((1, 2), (2, 5), (3, 7), (4, 4)):
            yield build_program(name, ranks, microbatches)
    yield evaluation_program((0, 1, 2, 1, 0), 6)


def test_as_many_buffers_do_and_one_fewer_does_not():
    looked_at = 0
    for program in _programs():
        verify(program)
        for rank in range(len(program.ranks)):
            pools = receive_buffers(program, rank)
            assert _fails_with(program, rank, pools) is None
            for key in pools:
                looked_at += 1
                less = pools | {key: pools[key] - 1}
                assert type(_fails_with(program, rank, less)) is key[1]
    assert looked_at > 100


def test_a_gradient_that_waits_for_its_weight_half_keeps_its_buffer():
    program = build_program("zb-h2", 3, 6)  # rank 0: I0 to I2 before W0
    assert receive_buffers(program, 0)[0, ReceiveBackward] >= 3


def test_the_memory_account_counts_as_many_buffers():
    one_byte = StageMemory(0, 0, 0, 0, 1, 1, 0, 0)
    for program in _programs():
        ends = [replace(one_byte, input_bytes=0), *[one_byte] * (program.stages - 2), replace(one_byte, output_bytes=0)]
        for rank in range(len(program.ranks)):
            assert rank_memory(program, ends[-program.stages :], rank).begin_bytes == buffers_at_once(program, rank)


@pytest.mark.parametrize("name", ["1f1b", "interleaved", "zb-h1", "zb-h2", "zb-v"])
def test_more_microbatches_need_no_more_buffers(name):
    few, many = (
        [receive_buffers(build_program(name, 4, microbatches), rank) for rank in range(4)] for microbatches in (32, 64)
    )
    assert few == many
