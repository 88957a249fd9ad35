"""What a plan says of itself: what limits it, what else there was, what fixed axes cost, and what would help."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest

from evenflow.plan import Plan
from evenflow.search.layouts import LayoutRequest, Pins, plan_layout
from evenflow.spec import parse_cluster
from evenflow.spec.presets import find_preset
from evenflow.units import format_seconds

ROOMY = LayoutRequest(find_preset("llama-3.1-8b"), parse_cluster("8xA100-80GB"), 64, 4096)
TIGHT = LayoutRequest(find_preset("llama-2-13b"), parse_cluster("8xA100-40GB"), 64, 4096)


@cache
def planned(asked: LayoutRequest) -> Plan:
    return plan_layout(asked)


def said(plan: Plan, pattern: str) -> list[re.Match[str]]:
    return [found for note in plan.notes if (found := re.search(pattern, note))]


def test_what_limits_a_plan_adds_up() -> None:
    (line,) = said(planned(ROOMY), "^what limits it, .*")
    shares = [float(own) for own in re.findall(r"([\d.]+)%", line.group().partition(";")[0])]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(100, abs=0.3)


_ALTERNATIVE = (
    r"^([\d.]+)% slower: ((?:(?:pp|tp|cp|dp) \d+ ?)+), (\S+?)(?: x (\d+) stages)?, "
    r"microbatches of (\d+).*, ([\d.]+ m?s)$"
)


def test_the_alternatives_are_five_with_what_each_loses_and_each_is_a_plan_that_takes_that() -> None:
    best = planned(ROOMY)
    found = said(best, _ALTERNATIVE)
    assert len(found) == 5
    losses = [float(own[1]) for own in found]
    assert losses == sorted(losses)
    assert losses[0] < 10, "what a person would think of next is among them"
    for own in found[:2]:
        axes = {"pp": 1, "tp": 1, "dp": 1, **{name: int(n) for name, n in re.findall(r"(\w\w) (\d+)", own[2])}}
        pins = Pins(**axes, schedule=own[3], stages_per_rank=int(own[4] or 1), micro_batch_size=int(own[5]))
        pinned = planned(replace(ROOMY, pins=pins))
        assert format_seconds(pinned.predicted.step_s) == own[6]
        assert pinned.predicted.step_s / best.predicted.step_s - 1 == pytest.approx(float(own[1]) / 100, abs=6e-4)


def test_a_fixed_axis_has_its_price_and_the_plan_without_it_takes_that() -> None:
    pins = Pins(pp=8, tp=1, dp=1, schedule="1f1b")
    fixed = planned(replace(ROOMY, pins=pins))
    (price,) = said(fixed, r"^--schedule 1f1b costs ([\d.]+)%: .* would take ([\d.]+ s)$")
    free = planned(replace(ROOMY, pins=replace(pins, schedule=None)))
    assert format_seconds(free.predicted.step_s) == price[2]
    assert fixed.predicted.step_s / free.predicted.step_s - 1 == pytest.approx(float(price[1]) / 100, abs=6e-4)
    assert [own[1] for own in said(fixed, r"^--(\w+) \d costs nothing that was found$")] == ["pp", "tp", "dp"]
    assert not said(planned(ROOMY), "costs"), "of what nobody fixed there is no price"


def test_the_head_is_worth_blocks_or_exceeds_a_share() -> None:
    (line,) = said(planned(replace(ROOMY, pins=Pins(pp=8, schedule="1f1b"))), r"^the head is worth (.*) blocks: (.*)$")
    assert float(line[1]) == pytest.approx(2.0, abs=0.2)
    assert line[2] == "rank 7 holds 2 fewer"
    many = replace(ROOMY, cluster=parse_cluster("32xA100-80GB"), pins=Pins(pp=32, tp=1, dp=1, schedule="1f1b"))
    assert said(planned(many), r"^the head alone exceeds an equal share: it is [\d.]+% of the work, .* over 32 ranks")


def test_more_memory_is_worth_what_it_says() -> None:
    plan = planned(TIGHT)
    (line,) = said(plan, r"^([\d.]+)% faster with 2.00 GiB more on each device$")
    layout = Pins(
        plan.axes.pp,
        plan.axes.tp,
        plan.axes.dp,
        stages_per_rank=len(plan.stages) // len(plan.ranks),
        schedule=plan.schedule,
        micro_batch_size=plan.micro_batch_size,
        zero=plan.zero,
    )
    more = plan_layout(replace(TIGHT, pins=layout, memory_limit=plan.memory_limit + 2 * 2**30))
    assert plan.predicted.step_s / more.predicted.step_s - 1 == pytest.approx(float(line[1]) / 100, abs=2e-3)
    assert not said(planned(ROOMY), "faster with"), "where nothing runs again there is nothing to gain"


def test_a_gap_has_its_reason() -> None:
    plan = planned(replace(ROOMY, pins=Pins(pp=8, tp=1, dp=1, schedule="1f1b")))
    assert plan.bound.gap > 0.05
    (line,) = said(plan, r"^the step is ([\d.]+)% above the bound, which counts blocks as if")
    assert float(line[1]) / 100 == pytest.approx(plan.bound.gap, abs=6e-4)
    assert planned(ROOMY).bound.gap <= 0.05
    assert not said(planned(ROOMY), "above the bound")
