"""Why: a gap to a bound is worth what the proof is worth, so orders of every kind are held against it."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from benchmarks.uneven import uneven_case
from evenflow.cost import LinkCost, Links, RankCost, StageCost, StageMemory
from evenflow.program import build_program, lower, peak_bytes, place
from evenflow.program.schedules.improve import counted_peak
from evenflow.program.schedules.listing import Policy, list_schedule
from evenflow.program.times import decode, encode, order_times
from evenflow.search import make_auto, order_bound_s, plan_work
from evenflow.simulate import Hardware, step_seconds
from tests.property.cases import NO_MEMORY, NO_RANK_COST
from tests.property.strategies import random_order
from tests.sweeps import sweep


def _uneven_hardware(random, stage_rank):
    """Links that differ by edge and by direction, ranks of different speed, every cost of any kind, none among them."""
    ranks = max(stage_rank) + 1

    def seconds():
        return random.choice([0.0, 0.1, 1.0, 1.0, 2.0, random.random()])

    costs = []
    for _ in stage_rank:
        forward, half, weight = seconds(), seconds(), seconds()
        costs.append(StageCost(forward, (half + weight) * random.choice([0.8, 1.0, 1.3]), half, weight))
    sizes = [random.choice([0, 5, 10]) for _ in stage_rank[1:]]
    memory = [
        StageMemory(0, random.randint(0, 9), random.choice([0, 10, 30]), random.choice([0, 5, 10]), into, out, 0, 0)
        for into, out in zip([0, *sizes], [*sizes, 0], strict=True)
    ]
    edges = [(one, other) for one in range(ranks) for other in range(ranks) if random.random() < 0.7]
    links = Links(
        LinkCost(random.choice([0.0, 0.3]), 1e9),
        between={edge: LinkCost(random.choice([0.0, 0.3, 3.0]), random.choice([1e9, 10.0])) for edge in edges},
    )
    return Hardware(
        costs,
        [RankCost(seconds(), 3 * seconds()) for _ in range(ranks)],
        links,
        memory,
        reduce_s=seconds(),
        speeds=random.choice([None, [random.uniform(0.25, 4.0) for _ in range(ranks)]]),
        at_once=random.choice([None, None, max(ranks - 1, 1)]),
    )


@sweep(range(600), 13)
def test_no_order_at_all_is_faster(seeds):
    """Whole backwards and halves, microbatches in any order, under the very memory that the program needs."""
    for seed in seeds:
        random = Random(seed)
        stage_rank = place(random.choice(["loop", "v"]), random.randint(1, 3), random.randint(3, 5))
        microbatches = random.randint(1, 4)
        hardware = _uneven_hardware(random, stage_rank)
        order = random_order(random, stage_rank, microbatches, together=True)
        program = lower(
            order, stage_rank, microbatches, random.choice([None, plan_work(stage_rank, microbatches, hardware)])
        )
        caps = [float(peak_bytes(program, hardware.memory, rank)) for rank in range(len(program.ranks))]
        bound = order_bound_s(plan_work(stage_rank, microbatches, hardware, caps), hardware)
        assert step_seconds(program, hardware) >= bound * (1 - 1e-9), seed


@sweep(range(300), 13)
def test_no_listed_order_is_faster(seeds):
    """Random list schedules, which come close to the bound, in any placement, with links of any direction."""
    for seed in seeds:
        chance = Random(seed)
        case = uneven_case(seed, most_ranks=5)
        ranks = len(case.caps)
        hardware = case.hardware
        if seed % 2:
            uneven = _uneven_hardware(chance, case.stage_rank)
            hardware = replace(hardware, links=uneven.links, ranks=uneven.ranks, speeds=uneven.speeds)
        work = plan_work(case.stage_rank, case.microbatches, hardware)
        target = tuple(chance.randint(1, 12) for _ in range(ranks))
        backlog = tuple(float(chance.randint(0, 9)) for _ in range(ranks))
        listed = list_schedule(work, Policy(target, tuple(map(float, target)), backlog, chance.random()))
        assert listed is not None
        caps = tuple(counted_peak(actions, work) for actions in listed[0])
        program = lower(decode(listed[0], work), case.stage_rank, case.microbatches, work)
        bound = order_bound_s(replace(work, cap=caps), hardware)
        assert step_seconds(program, hardware) >= bound * (1 - 1e-9), seed


def test_each_direction_has_its_own_seconds():
    """Forwards travel for three seconds and gradients for none; then the other way round."""
    stages, memory = [StageCost(1.0, 2.0, 1.0, 1.0)] * 2, [NO_MEMORY] * 2
    for there, back in ((3.0, 0.0), (0.0, 3.0)):
        links = Links(LinkCost(there, 1e9), between={(1, 0): LinkCost(back, 1e9)})
        hardware = Hardware(stages, [NO_RANK_COST] * 2, links, memory)
        work = plan_work((0, 1), 1, hardware)
        assert (work.lag, work.back_lag) == ((there,), (back,))
        order = build_program("1f1b", 2, 1).compute_order()
        times = order_times(encode(order, work), work)
        assert [starts[-1] for starts in times.start] == [there + 4 + back, there + 2]
        halves = build_program("zb-h1", 2, 1)
        assert order_bound_s(work, hardware) == step_seconds(halves, hardware) == there + back + 5


def test_norm_and_update_are_as_fast_as_their_rank():
    stages = [StageCost(1.0, 2.0, 1.0, 1.0)] * 2
    hardware = Hardware(stages, [RankCost(20.0, 50.0)] * 2, LinkCost(0.0, 1e9), [NO_MEMORY] * 2, speeds=[4.0, 4.0])
    found = make_auto((0, 1), 1, hardware, [1e9] * 2)
    assert found.bound_s == found.step_s == pytest.approx(5 / 4 + 20 / 4 + 50 / 4)


def test_forwards_come_no_faster_than_the_slowest_stage_before_makes_them():
    """The last rank cannot begin its last forward before 4 x 4 and 1; two input halves and a weight half follow it."""
    stages = [StageCost(4.0, 0.2, 0.1, 0.1), StageCost(1.0, 0.2, 0.1, 0.1), StageCost(3.0, 6.0, 3.0, 3.0)]
    hardware = Hardware(stages, [NO_RANK_COST] * 3, LinkCost(0.0, 1e9), [NO_MEMORY] * 3)
    bound = order_bound_s(plan_work((0, 1, 2), 2, hardware), hardware)
    # From 5 on rank 2 has 18 seconds of work; then the last gradient's way is covered by its own weight half.
    assert bound == 5 + 18
    slow_last = [StageCost(4.0, 0.2, 0.1, 0.1), StageCost(1.0, 2.0, 1.0, 1.0)]
    hardware = Hardware(slow_last, [NO_RANK_COST] * 2, LinkCost(0.0, 1e9), [NO_MEMORY] * 2)
    found = make_auto((0, 1), 4, hardware, [1e9] * 2)
    # Rank 1 has 12 seconds of work from 4 on, but its fourth microbatch comes at 16: F, I and W take it to 19.
    assert found.bound_s == found.step_s == pytest.approx(19.0)


def test_is_met_where_nothing_can_idle():
    stages = [StageCost(1.0, 2.0, 1.0, 1.0)] * 3
    hardware = Hardware(stages, [RankCost(0.5, 1.0)] * 3, LinkCost(0.0, float("inf")), [NO_MEMORY] * 3)
    found = make_auto((0, 1, 2), 12, hardware, [1e9] * 3)
    assert found.gap == pytest.approx(0.0, abs=1e-9)
    assert found.step_s == pytest.approx(2 + 36 + 0.5 + 1.0)


def test_processors_that_ranks_share_have_all_the_work_to_do():
    stages = [StageCost(1.0, 2.0, 1.0, 1.0)] * 4
    hardware = Hardware(stages, [NO_RANK_COST] * 4, LinkCost(0.0, 1e9), [NO_MEMORY] * 4, at_once=1)
    found = make_auto((0, 1, 2, 3), 3, hardware, [1e9] * 4)
    assert found.bound_s == pytest.approx(found.step_s) == 4 * 3 * 3
