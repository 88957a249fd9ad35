"""Simulate a plan from the costs that it holds: the step, why ranks idle, and peak memory; or all schedules for it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from evenflow.cli.options import add_json, add_schedule, path
from evenflow.errors import InputError

if TYPE_CHECKING:
    from evenflow.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("plan", type=path, metavar="PLAN", help="a plan.json, as `plan --out` writes it")
    add_schedule(parser, default="default: the plan's own")
    parser.add_argument("--compare", action="store_true", help="all schedules for this plan side by side")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Simulate and print."""
    from evenflow.files import load_plan
    from evenflow.search import reschedule

    if arguments.compare and arguments.schedule is not None:
        raise InputError("--compare shows all schedules; without --schedule it would work")
    plan = load_plan(arguments.plan)
    if arguments.compare:
        return _compare(plan, arguments.json)
    if arguments.schedule is not None and arguments.schedule != plan.schedule:
        plan = reschedule(plan, arguments.schedule)
    return _simulate(plan, arguments.json)


def _simulate(plan: Plan, as_json: bool) -> int:
    from evenflow.cli.console import show, show_json
    from evenflow.draw import costs_line, idle_table
    from evenflow.search import order_gap, plan_timeline
    from evenflow.timeline import idle_by_cause

    timeline = plan_timeline(plan)
    if not as_json:
        show(idle_table(timeline), "", costs_line(plan))
        return 0
    causes = idle_by_cause(timeline)
    show_json(
        {
            "schedule": plan.schedule,
            "step_s": timeline.step_s,
            "idle_fraction": timeline.idle_fraction,
            "imbalance": timeline.imbalance,
            "gap": timeline.step_s / plan.bound.step_s - 1,
            "order_gap": order_gap(plan),
            "stages": [{"rank": stage.rank, "layers": list(stage.layers)} for stage in plan.stages],
            "ranks": [
                {
                    "rank": rank,
                    "busy_s": own.busy_s,
                    "optimizer_s": own.optimizer_s,
                    "idle_s": causes[rank],
                    "peak_bytes": own.peak_bytes,
                }
                for rank, own in enumerate(timeline.ranks)
            ],
            "costs": plan.costs,
        }
    )
    return 0


def _compare(plan: Plan, as_json: bool) -> int:
    from evenflow.cli.console import show, show_json
    from evenflow.draw import schedules_table
    from evenflow.search import compare_schedules

    compared = tuple(compare_schedules(plan))
    if as_json:
        rows = [_row(one.schedule, one.plan, one.reason) for one in compared]
        show_json({"plan": plan.schedule, "schedules": rows, "costs": plan.costs})
    else:
        show(schedules_table(plan, [(one.schedule, one.plan, one.reason) for one in compared]))
    return 0


def _row(schedule: str, plan: Plan | None, reason: str) -> dict[str, Any]:
    from evenflow.search import order_gap

    if plan is None:
        return {"schedule": schedule, "reason": reason}
    return {
        "schedule": schedule,
        "stages_per_rank": len(plan.stages) / len(plan.ranks),
        "step_s": plan.predicted.step_s,
        "idle_fraction": plan.predicted.idle_fraction,
        "imbalance": plan.predicted.imbalance,
        "peak_bytes": max(rank.peak_bytes for rank in plan.ranks),
        "gap": plan.bound.gap,
        "order_gap": order_gap(plan),
        "stages": [{"rank": stage.rank, "layers": list(stage.layers)} for stage in plan.stages],
    }
