"""Why: the order of compute actions is all that a schedule says, so it is counted for sizes that divide by nothing."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from evenflow.cost import StageCost
from evenflow.errors import InputError
from evenflow.program import (
    SCHEDULES,
    Backward,
    Forward,
    InputBackward,
    WeightBackward,
    Work,
    compute_order,
    default_stage_rank,
    evaluation_program,
    even_work,
    find_schedule,
    in_flight,
    lower,
    misfit,
    order_text,
    parse_order,
    place,
    placement_of,
    stages_of,
    verify,
)
from evenflow.program.schedules import FORWARD_ONLY
from evenflow.program.schedules.groups import groups_of
from evenflow.program.times import encode, order_times

MICROBATCHES = range(1, 14)


def _layouts(schedule, ranks):
    """Every placement of so many ranks that a schedule takes, up to four stages on a rank, not only multiples."""
    facts = SCHEDULES.get(schedule, FORWARD_ONLY)
    if facts.exactly:
        return [default_stage_rank(schedule, ranks)]
    counts = [ranks, ranks + 1, 2 * ranks - 1, 2 * ranks, 2 * ranks + 1, 3 * ranks, 4 * ranks - 1]
    counts = counts[:4:2] if facts.by_costs else counts  # these search, which takes a while
    return list(dict.fromkeys(place(how, ranks, max(count, ranks)) for how in ("loop", "v") for count in counts))


GRID = [(name, p) for name in SCHEDULES for p in (1, 2, 3, 4, 5) if not SCHEDULES[name].by_costs or p < 4]


@pytest.mark.parametrize(("schedule", "p"), GRID)
def test_computes_everything_once_on_its_own_rank_in_microbatch_order(schedule, p):
    """The same order of backwards on every stage keeps gradient sums bitwise equal between layouts."""
    by_costs, halves = SCHEDULES[schedule].by_costs, SCHEDULES[schedule].halves
    for ranks in _layouts(schedule, p):
        for m in (1, 4, 7) if by_costs else MICROBATCHES:
            order = compute_order(schedule, ranks, m)
            assert len(order) == p
            for rank, actions in enumerate(order):
                own = stages_of(ranks, rank)
                kinds = (Forward, InputBackward, WeightBackward) if halves else (Forward, Backward)
                assert len(actions) == len(kinds) * len(own) * m
                for kind in kinds:
                    for stage in own:
                        found = [a.microbatch for a in actions if isinstance(a, kind) and a.stage == stage]
                        assert found == list(range(m)), (ranks, m, kind, stage)
            verify(lower(order, ranks, m))


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5])
def test_an_evaluation_runs_every_forward_once(p):
    for ranks in _layouts("forward only", p):
        for m in MICROBATCHES:
            program = evaluation_program(ranks, m)
            verify(program)
            for rank, actions in enumerate(program.compute_order()):
                assert len(actions) == len(set(actions)) == m * len(stages_of(ranks, rank))


def test_an_evaluation_takes_microbatches_through_a_ranks_stages_in_groups():
    """So that few tensors lie about between them."""
    order = evaluation_program((0, 1, 0, 1), 4).compute_order()
    assert order_text(order)[0] == "0F0 0F1 2F0 2F1 0F2 0F3 2F2 2F3"


@pytest.mark.parametrize(("schedule", "most"), [("zb-1p", 1), ("zb-2p", 2)])
def test_caps_hold_where_more_memory_would_help(schedule, most):
    """Transfers of many seconds make forwards run ahead: more than 2p microbatches would be held if they might."""
    for ranks in ((0, 1), (0, 1, 2), (0, 1, 0, 1), (0, 1, 1, 0)):
        p = max(ranks) + 1
        work = replace(even_work(ranks, 8 * p), transfer_s=(9.0,) * (len(ranks) - 1))
        for rank, actions in enumerate(compute_order(schedule, ranks, 8 * p, work)):
            held = peak = 0.0
            for action in actions:
                held += {Forward: 1.0, InputBackward: -0.5, WeightBackward: -0.5}[type(action)] / ranks.count(rank)
                peak = max(peak, held)
            assert peak <= most * p + 1e-9
            assert rank or len(ranks) > p or peak > (most - 1) * p  # the first rank uses what it may


def test_what_stays_on_a_rank_is_there_at_once():
    work = replace(even_work((0, 1, 1, 0), 1), transfer_s=(1.0, 2.0, 4.0))
    times = order_times(encode(parse_order(("0F0 3F0 3B0 0B0", "1F0 2F0 2B0 1B0")), work), work)
    assert times.start == [[0.0, 8.0, 9.0, 20.0], [2.0, 3.0, 15.0, 17.0]]


@pytest.mark.parametrize("p", [2, 3, 4, 5])
def test_interleaved_holds_no_more_however_many_microbatches_there_are(p):
    """In any placement: the forwards before a rank's first backward, and where the order is listed, 2p more."""
    for ranks in _layouts("interleaved", p):
        m = 12 * p
        order = compute_order("interleaved", ranks, m)
        for rank, actions in enumerate(order):
            own = stages_of(ranks, rank)
            warm_up = (len(own) - 1) * p + 2 * (len(ranks) - 1 - own[-1]) + 1
            listed = len(ranks) % p > 0 or (placement_of(ranks) == "v")
            assert _held(actions) <= warm_up + (2 * p if listed else 0), ranks


def _held(actions):
    held = most = 0
    for action in actions:
        held += isinstance(action, Forward) - isinstance(action, Backward | WeightBackward)
        most = max(most, held)
    return most


def test_in_flight_counts_each_stage_by_itself():
    order = ((Forward(0, 0), Forward(2, 0), Forward(0, 1), InputBackward(2, 0), WeightBackward(2, 0)), (Forward(1, 0),))
    assert in_flight(order, 3) == (2, 1, 1)


def test_groups_are_as_equal_as_they_can_be_and_have_a_microbatch_for_each_rank():
    for ranks in range(1, 9):
        for m in range(1, 60):
            groups = groups_of(m, ranks)
            sizes = [len(group) for group in groups]
            assert [k for group in groups for k in group] == list(range(m))
            assert max(sizes) - min(sizes) <= 1
            assert min(sizes) >= min(ranks, m)
            assert max(sizes) < 2 * ranks
            assert sizes == sorted(sizes, reverse=True)


def test_placements():
    assert place("one", 4, 4) == (0, 1, 2, 3)
    assert place("loop", 3, 8) == (0, 1, 2, 0, 1, 2, 0, 1)
    assert place("v", 3, 8) == (0, 1, 2, 2, 1, 0, 0, 1)
    assert placement_of((0, 1, 2)) == "one"
    assert placement_of((0, 1, 2, 0)) == "loop"
    assert placement_of((0, 1, 2, 2)) == "v"
    assert placement_of((1, 0)) is None
    assert stages_of((0, 1, 1, 0), 0) == (0, 3)


@pytest.mark.parametrize(
    ("schedule", "per_rank", "expected"),
    [
        ("1f1b", None, (0, 1, 2)),
        ("gpipe", None, (0, 1, 2)),
        ("gpipe", 2, (0, 1, 2, 0, 1, 2)),
        ("interleaved", None, (0, 1, 2, 0, 1, 2)),
        ("interleaved", 3, (0, 1, 2, 0, 1, 2, 0, 1, 2)),
        ("interleaved", 1, (0, 1, 2)),
        ("zb-h1", None, (0, 1, 2)),
        ("zb-2p", 2, (0, 1, 2, 0, 1, 2)),
        ("zb-v", None, (0, 1, 2, 2, 1, 0)),
    ],
)
def test_where_a_schedule_has_its_stages(schedule, per_rank, expected):
    assert default_stage_rank(schedule, 3, per_rank) == expected


def test_what_each_schedule_runs_on_says_so():
    for name in SCHEDULES:
        for p in (1, 2, 3):
            assert misfit(name, default_stage_rank(name, p)) is None


@pytest.mark.parametrize(
    ("schedule", "ranks", "message"),
    [
        (
            "1f1b",
            (0, 1, 0, 1),
            "1F1B runs one stage on each rank: 2 stages on 2 ranks, not 4; interleaved takes several",
        ),
        ("1f1b", (1, 0), "1F1B needs its stages in one placement, not on the ranks [1, 0]"),
        ("zb-h1", (0, 0), "ZB-H1 runs one stage on each rank: 1 stage on 1 rank, not 2"),
        ("zb-v", (0, 1, 1), "ZB-V runs 2 stages on each rank: 4 stages on 2 ranks, not 3"),
        ("zb-v", (0, 1, 0, 1), "ZB-V needs its stages in v placement, not on the ranks [0, 1, 0, 1]"),
        ("gpipe", (0, 0, 1), "GPipe needs its stages in one or loop or v placement, not on the ranks [0, 0, 1]"),
        (
            "interleaved",
            (0, 2, 1),
            "interleaved 1F1B needs its stages in loop or one or v placement, not on the ranks [0, 2, 1]",
        ),
    ],
)
def test_what_does_not_fit_is_told_what_would(schedule, ranks, message):
    assert misfit(schedule, ranks) == message
    with pytest.raises(InputError) as caught:
        compute_order(schedule, ranks, 2)
    assert str(caught.value) == message


def test_a_schedule_that_is_not_known_names_those_that_are():
    with pytest.raises(InputError, match=r"schedule 'zigzag' is not known; 1f1b, .*gpipe, .*zb-v.* are"):
        compute_order("zigzag", 2, 2)
    with pytest.raises(InputError, match="zigzag"):
        find_schedule("zigzag")


def _uneven(ranks, m, seed):
    random = Random(seed)
    even = even_work(ranks, m)
    costs = []
    for _ in ranks:
        half, weight = random.uniform(0.5, 3), random.uniform(0.5, 3)
        costs.append(StageCost(random.uniform(0.5, 3), half + weight, half, weight))
    transfers = tuple(random.uniform(0, 1) for _ in ranks[1:])
    return Work(ranks, m, tuple(costs), transfers, even.saved, even.pending, even.cap)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_only_a_schedule_that_says_so_looks_at_costs(schedule):
    ranks = default_stage_rank(schedule, 3)
    even = compute_order(schedule, ranks, 7)
    orders = [compute_order(schedule, ranks, 7, _uneven(ranks, 7, seed)) for seed in range(4)]
    assert any(order != even for order in orders) == SCHEDULES[schedule].by_costs
    assert orders == [compute_order(schedule, ranks, 7, _uneven(ranks, 7, seed)) for seed in range(4)]
    for order in orders:
        verify(lower(order, ranks, 7, _uneven(ranks, 7, 0)))
