"""A plan read back predicts what it predicted, and its work under another schedule is a plan like any other."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from evenflow.errors import ImpossibleError
from evenflow.files import load_plan, save_plan
from evenflow.plan import Axes
from evenflow.program import SCHEDULES, build_program, place, verify
from evenflow.search import (
    compare_schedules,
    make_plan,
    order_gap,
    plan_program,
    plan_timeline,
    reschedule,
)
from evenflow.search.hardware import plan_hardware
from evenflow.spec import Batch
from tests.property.cases import cluster_of, random_costs, random_model
from tests.search.random_cases import random_case


def test_a_plan_read_back_predicts_what_it_predicted():
    *_, stages, microbatches, costs, model, _ = random_case(5)
    plan = make_plan(model, cluster_of(stages), Batch(microbatches, 1, 16), costs, "1f1b")
    assert plan_program(plan).compute_order() == build_program("1f1b", stages, microbatches).compute_order()
    assert plan_timeline(plan, with_transfers=False).step_s <= plan.predicted.step_s
    gpipe = plan_timeline(plan, "gpipe").program
    assert gpipe.compute_order() == build_program("gpipe", stages, microbatches).compute_order()


@pytest.mark.parametrize("schedule", [*SCHEDULES, "auto"])
def test_every_schedule_is_planned_saved_and_predicts_what_it_predicted(schedule, tmp_path):
    random = Random(schedule)
    costs, model = random_costs(random, 9), random_model(random, 9)
    plan = make_plan(model, cluster_of(3), Batch(7, 1, 16), costs, schedule)
    save_plan(plan, tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    assert again == plan
    verify(plan_program(again))
    timeline = plan_timeline(again)
    assert timeline.step_s == plan.predicted.step_s
    assert [own.peak_bytes for own in timeline.ranks] == [own.peak_bytes for own in plan.ranks]
    assert [layer for layers in plan.stage_layers for layer in layers] == list(range(9))
    assert plan.bound.gap >= 0
    assert order_gap(plan) >= -1e-9


def test_a_plan_is_rescheduled_over_stages_that_the_other_schedule_can_run():
    random = Random(3)
    costs, model = random_costs(random, 12), random_model(random, 12)
    plan = make_plan(model, cluster_of(3), Batch(6, 1, 16), costs)
    kept = reschedule(plan, "zb-h1")
    assert kept.stage_layers == plan.stage_layers
    anew = reschedule(plan, "zb-v")
    fresh = make_plan(model, cluster_of(3), Batch(6, 1, 16), costs, "zb-v")
    assert anew.predicted.mfu == pytest.approx(fresh.predicted.mfu)
    assert anew == replace(fresh, search=anew.search, predicted=anew.predicted)
    assert anew.predicted.step_s == fresh.predicted.step_s
    several = reschedule(plan, "interleaved", 3)
    assert several.stage_rank == place("loop", 3, 9)


def test_schedules_compared_are_all_there_and_auto_is_never_slower_on_the_same_stages():
    random = Random(8)
    costs, model = random_costs(random, 7), random_model(random, 7)
    plan = make_plan(model, cluster_of(4), Batch(8, 1, 16), costs)
    compared = {one.schedule: one for one in compare_schedules(plan)}
    assert list(compared) == [*SCHEDULES, "auto"]
    assert compared["1f1b"].plan is plan
    for name in ("interleaved", "zb-v"):  # seven layers are no eight stages
        assert compared[name].plan is None
        assert "8 stages" in compared[name].reason
        assert "at least 8 layers" in compared[name].reason
    steps = {name: one.plan.predicted.step_s for name, one in compared.items() if one.plan is not None}
    assert min(steps, key=steps.__getitem__) == "auto" or steps["auto"] == min(steps.values())


def test_a_limit_no_schedule_meets_is_said_with_the_rank_and_figures():
    random = Random(2)
    costs, model = random_costs(random, 6), random_model(random, 6)
    plan = make_plan(model, cluster_of(2), Batch(6, 1, 16), costs)
    with pytest.raises(ImpossibleError, match=r"no schedule fits: .*rank \d needs .* of "):
        reschedule(replace(plan, memory_limit=max(rank.peak_bytes for rank in plan.ranks) // 4), "auto")


def test_gradients_of_replicas_are_added_at_the_rate_that_was_measured_for_that(tmp_path):
    random = Random(4)
    costs, model = random_costs(random, 6), random_model(random, 6)
    axes, batch = Axes(pp=2, dp=2), Batch(8, 1, 16, 2)
    by_transfers = make_plan(model, cluster_of(4), batch, costs, axes=axes)
    slow = replace(costs, sum_link=replace(costs.link, bytes_per_s=costs.link.bytes_per_s / 8))
    plan = make_plan(model, cluster_of(4), batch, slow, axes=axes, split=by_transfers.stage_layers)
    spent = [plan_hardware(own).reduce_grad_s for own in (by_transfers, plan)]
    assert [own > 4 * other for own, other in zip(spent[1], spent[0], strict=True)] == [True, True]
    save_plan(plan, tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    assert again == plan
    assert plan_timeline(again).step_s == plan.predicted.step_s
