"""Why: PyTorch has these schedules too, and its own validator: what either makes, the other must be able to run.

PyTorch is a second opinion here and no more; where it is wrong, a test says so.
"""

from __future__ import annotations

import csv
import io
from unittest import mock

import pytest

from evenflow.errors import ProgramError
from evenflow.program import (
    SCHEDULES,
    Backward,
    Compute,
    Forward,
    InputBackward,
    ReduceGrad,
    WeightBackward,
    action_text,
    build_program,
    compute_order,
    default_stage_rank,
    lower,
    order_csv,
    order_text,
    parse_order_csv,
    place,
    verify,
)
from evenflow.simulate import simulate
from tests.property.cases import equal_stages, hardware_of

theirs = pytest.importorskip("torch.distributed.pipelining.schedules")
visualizer = pytest.importorskip("torch.distributed.pipelining._schedule_visualizer")

TRANSFERS = ("SEND_F", "RECV_F", "SEND_B", "RECV_B")


def _layouts(schedule, p):
    facts = SCHEDULES[schedule]
    if facts.exactly or p == 1:
        return [default_stage_rank(schedule, p)]
    counts = (p, 2 * p) if facts.by_costs else (p, p + 1, 2 * p, 3 * p - 1, 3 * p)
    return list(dict.fromkeys(place(how, p, count) for how in ("loop", "v") for count in counts))


GRID = [(schedule, ranks) for schedule in SCHEDULES for p in (1, 2, 3, 4) for ranks in _layouts(schedule, p)]


@pytest.mark.parametrize(("schedule", "ranks"), GRID)
def test_pytorch_accepts_our_order_and_sees_it_finish(schedule, ranks):
    p, stages = max(ranks) + 1, len(ranks)
    for m in (1, 2, 5, 8):
        ours = compute_order(schedule, ranks, m)
        order = {rank: [theirs._Action.from_str(action_text(a)) for a in own] for rank, own in enumerate(ours)}
        assert theirs._validate_schedule(order, p, stages, m) == dict(enumerate(ranks))
        with_transfers = theirs._add_send_recv(order, ranks.__getitem__, stages)
        theirs._simulate_comms_compute(with_transfers, ranks.__getitem__, stages)
        program = lower(ours, ranks, m)
        for rank, actions in enumerate(program.ranks):
            tokens = sorted(token for token in map(action_text, actions) if any(word in token for word in TRANSFERS))
            assert tokens == sorted(str(a) for a in with_transfers[rank] if a.computation_type.value in TRANSFERS)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_gradients_are_reduced_where_pytorch_reduces_them(schedule):
    """Right after a stage's last one."""
    for p, m in [(1, 3), (3, 2), (4, 7)]:
        program = build_program(schedule, p, m, reduces=True)
        for ours, actions in zip(program.compute_order(), program.ranks, strict=True):
            expected = theirs._add_reduce_grad([theirs._Action.from_str(action_text(own)) for own in ours], m)
            kept = [action_text(own) for own in actions if isinstance(own, ReduceGrad | Compute)]
            assert kept == list(map(str, expected))


def _runtime(p, stages_per_rank, m):
    """PyTorch's runtime with stages that are none."""
    stages = [mock.Mock(group_rank=0, group_size=p, num_stages=p * stages_per_rank) for _ in range(stages_per_rank)]
    return theirs._PipelineScheduleRuntime(stages, m)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("p", [1, 2, 4])
def test_pytorch_reads_our_csv_and_we_read_what_it_writes(tmp_path, schedule, p):
    ranks = default_stage_rank(schedule, p)
    for m in (1, 4, 7):
        order = compute_order(schedule, ranks, m)
        path, back = tmp_path / "ours.csv", tmp_path / "theirs.csv"
        path.write_text(order_csv(order))
        runtime = _runtime(p, len(ranks) // p, m)
        runtime._load_csv(path)
        assert [" ".join(map(str, runtime.pipeline_order[rank])) for rank in range(p)] == list(order_text(order))
        assert runtime.stage_index_to_group_rank == dict(enumerate(ranks))
        runtime._dump_csv(back, format="compute_only")
        assert parse_order_csv(back.read_text()) == order


def _as_csv(rows):
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


def _their_order(name, p, m, stages_per_rank=1):
    """An order that PyTorch makes, through the CSV that it writes; REDUCE_GRAD is nothing that a schedule decides."""
    rows = visualizer.get_schedule_ops(name, p, m, stages_per_rank)
    kept = [[own for own in row if own is None or own.is_compute_op] for row in rows]
    return parse_order_csv(_as_csv(kept))


def _placement(order):
    where = {action.stage: rank for rank, actions in enumerate(order) for action in actions}
    return tuple(where[stage] for stage in range(len(where)))


THEIRS = [
    (name, p, v, m)
    for name, turns in {
        "GPipe": (1,),
        "Interleaved1F1B": (2, 3),
        "LoopedBFS": (2, 3),
        "InterleavedZeroBubble": (2, 3),
        "ZBVZeroBubble": (2,),
        "DualPipeV": (2,),
    }.items()
    for v in turns
    for p in (2, 3, 4)
    for m in (p, 2 * p - 1, 2 * p, 2 * p + 2, 4 * p)
    if not (name == "DualPipeV" and m < 2 * p)  # it asks for a microbatch for each stage
    if not (name.startswith("Interleaved") and m % (m // p))  # and these that all rounds are of one size
]


@pytest.mark.parametrize(("name", "p", "v", "m"), THEIRS)
def test_pytorchs_orders_load_lower_verify_and_simulate_here(name, p, v, m):
    order = _their_order(name, p, m, v)
    ranks = _placement(order)
    assert ranks == place("v" if "V" in name else "loop", p, p * v)
    program = lower(order, ranks, m, reduces=True)
    verify(program)
    timeline = simulate(program, hardware_of(program, equal_stages(p * v, 1.0, 2.0)))
    assert [own.busy_s for own in timeline.ranks] == pytest.approx([3.0 * v * m] * p)
    forwards = [own for actions in order for own in actions if isinstance(own, Forward)]
    assert len(forwards) == len(set(forwards)) == p * v * m


def test_an_overlapped_forward_and_backward_are_two_actions_here():
    """DualPipeV's cells `(0F5;3B0)OVERLAP_F_B`: our ranks run one action at a time."""
    rows = visualizer.get_schedule_ops("DualPipeV", 2, 6)
    cells = [str(cell) for row in rows for cell in row if cell is not None]
    overlapped = [cell for cell in cells if "OVERLAP" in cell]
    assert overlapped
    order = _their_order("DualPipeV", 2, 6, 2)
    assert sum(map(len, order)) == len(cells) + len(overlapped)


ONE = [(p, m) for p in (1, 2, 3, 4, 8) for m in (1, 2, 3, 4, 7, 16)]


@pytest.mark.parametrize(("p", "m"), ONE)
def test_gpipe_is_pytorchs(p, m):
    """Torch, too, runs the backwards in the forwards' order."""
    assert compute_order("gpipe", p, m) == _their_order("GPipe", p, m)


@pytest.mark.parametrize(("p", "m"), [(p, m) for p, m in ONE if m >= p])
def test_1f1b_is_pytorchs_but_for_its_last_rank(p, m):
    """Torch 2.13's table numbers that rank's forwards from 1 (its executor does not): ours refuses to run it."""
    ours, order = compute_order("1f1b", p, m), _their_order("1F1B", p, m)
    assert order[:-1] == ours[:-1]
    shifted = tuple(Forward(own.stage, own.microbatch + 1) if isinstance(own, Forward) else own for own in ours[-1])
    assert order[-1] == shifted
    with pytest.raises(ProgramError, match=rf"rank {p - 1}: {p - 1}F{m}: microbatches run from 0 to {m - 1}"):
        lower(order, tuple(range(p)), m)


@pytest.mark.parametrize("v", [2, 3])
@pytest.mark.parametrize("p", [2, 3, 4])
def test_interleaved_is_pytorchs_where_its_rounds_are_of_one_size(p, v):
    """Where they are not, torch refuses; ours has larger rounds first."""
    for m in (1, p, p + 1, 2 * p - 1, 2 * p, 2 * p + 2, 3 * p, 6 * p):
        ours = compute_order("interleaved", place("loop", p, p * v), m)
        if m % max(m // p, 1):
            with pytest.raises(ValueError, match="multiple of the number of rounds"):
                _their_order("Interleaved1F1B", p, m, v)
        else:
            assert ours == _their_order("Interleaved1F1B", p, m, v), m


@pytest.mark.parametrize("v", [2, 3])
@pytest.mark.parametrize("p", [2, 3, 4])
def test_gpipe_on_a_loop_is_pytorchs_looped_bfs_but_for_the_order_of_backwards(p, v):
    """Torch runs a stage's backwards last microbatch first: gradients add up in another order than elsewhere."""
    for m in (1, p, 2 * p + 1):
        ours = compute_order("gpipe", place("loop", p, p * v), m)
        order = _their_order("LoopedBFS", p, m, v)
        turned = [
            tuple(Backward(a.stage, m - 1 - a.microbatch) if isinstance(a, Backward) else a for a in actions)
            for actions in order
        ]
        assert list(ours) == turned


def _idle_inside(order, ranks, m):
    """Seconds of each rank between its own first and last action in which it has nothing to do, F = I = W = 1."""
    program = lower(order, ranks, m)
    timeline = simulate(program, hardware_of(program, equal_stages(len(ranks), 1.0, 2.0)))
    idle = []
    for own in timeline.ranks:
        events = [e for e in own.events if isinstance(e.action, Forward | Backward | InputBackward | WeightBackward)]
        idle.append(round(events[-1].end_s - events[0].start_s - own.busy_s, 6))
    return idle


@pytest.mark.parametrize("p", [2, 3, 4])
def test_zb_v_has_no_more_idle_than_pytorchs(p):
    """The same method; theirs is drawn for m >= 2p - 1 and cut down below, ours is listed for any m."""
    ranks = place("v", p, 2 * p)
    for m in (1, p, 2 * p - 1, 2 * p, 4 * p):
        ours = _idle_inside(compute_order("zb-v", ranks, m), ranks, m)
        assert sum(ours) <= sum(_idle_inside(_their_order("ZBVZeroBubble", p, m, 2), ranks, m)) + 1e-6
        if m >= 2 * p - 1:
            assert not any(ours)
