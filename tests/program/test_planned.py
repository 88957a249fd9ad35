"""Why: planner, trainer and reader of a plan must make one and the same program of it, and none that holds too much."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evenflow.cost import LinkCost
from evenflow.errors import ProgramError
from evenflow.program import peak_bytes, plan_caps, plan_program, verify_plan
from evenflow.program.times import encode, order_times
from evenflow.search import make_plan, plan_timeline, plan_work, reschedule
from evenflow.search.posting import posted_program
from evenflow.simulate import Hardware
from evenflow.spec import Batch
from tests.files.samples import sample_costs, sample_model, sample_plan
from tests.property.cases import cluster_of

SLOW = LinkCost(0.2, float("inf"))  # some five forwards of a stage


def _slow_plan(schedule, link=SLOW):
    model = sample_model()
    costs = replace(sample_costs(model), link=link)
    return make_plan(model, cluster_of(4), Batch(48, 2, 128), costs, schedule)


def _hardware(plan):
    return Hardware(
        [stage.cost for stage in plan.stages],
        [rank.cost for rank in plan.ranks],
        plan.link,
        [stage.memory for stage in plan.stages],
    )


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb-h1", "interleaved"])
def test_a_plan_over_slow_links_hides_them_under_named_schedules_too(schedule):
    plan = _slow_plan(schedule)
    work = plan_work(plan.stage_rank, plan.microbatches, _hardware(plan))
    times = order_times(encode(plan_program(plan).compute_order(), work), work)
    ends = (own[-1] + rank.cost.norm_s for own, rank in zip(times.end, plan.ranks, strict=True))
    after = plan.reduce_s + max(rank.cost.optimizer_s for rank in plan.ranks)
    assert plan.posting == "costs"
    assert plan.predicted.step_s <= (max(ends) + after) * 1.01
    assert plan_timeline(plan).step_s == plan.predicted.step_s


def test_transfers_are_hidden_only_as_far_as_memory_allows():
    """A link of twelve forwards: as many outputs are under way, unless memory is short of so many."""
    plan = _slow_plan("gpipe", LinkCost(0.5, float("inf")))
    hardware = _hardware(plan)
    work = plan_work(plan.stage_rank, plan.microbatches, hardware)
    order = plan_program(plan).compute_order()

    def peaks(program):
        return [peak_bytes(program, hardware.memory, rank) for rank in range(4)]

    hiding, posting = posted_program(order, work, hardware, [float("inf")] * 4)
    assert posting == "costs"
    flat, posting = posted_program(order, work, hardware, [max(peaks(hiding)) - 1] * 4)
    assert posting == "even"
    assert max(peaks(flat)) < max(peaks(hiding))


def test_a_plan_whose_program_would_hold_too_much_is_refused():
    plan = sample_plan()
    assert verify_plan(plan) == plan_program(plan)
    least = max(rank.peak_bytes for rank in plan.ranks)
    verify_plan(replace(plan, memory_limit=least))
    tight = replace(plan, memory_limit=least - 1)
    assert plan_caps(tight) == (least - 1,) * 4
    with pytest.raises(ProgramError, match=r"rank \d: \S+: the rank holds .* of "):
        verify_plan(tight)


def test_a_plan_is_proved_as_it_is_posted():
    """What is proved is the program that runs: by the costs, where the plan says so."""
    plan = reschedule(sample_plan(), "auto")
    assert {verify_plan(replace(plan, posting=posting)) == plan_program(plan) for posting in ("even", "costs")} == {
        True,
        False,
    }
