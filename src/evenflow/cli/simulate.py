"""Simulate a plan from the costs that it holds: the step, why ranks idle, and peak memory."""

from __future__ import annotations

import argparse

from evenflow.cli.options import add_json, add_schedule, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("plan", type=path, metavar="PLAN", help="a plan.json")
    add_schedule(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Simulate and print."""
    from evenflow.cli.console import show, show_json
    from evenflow.draw import idle_table
    from evenflow.files import load_plan
    from evenflow.search import plan_timeline
    from evenflow.timeline import idle_by_cause

    plan = load_plan(arguments.plan)
    timeline = plan_timeline(plan, arguments.schedule)
    if arguments.json:
        show_json(
            {
                "schedule": arguments.schedule or plan.schedule,
                "step_s": timeline.step_s,
                "idle_fraction": timeline.idle_fraction,
                "imbalance": timeline.imbalance,
                "gap": timeline.step_s / plan.bound.step_s - 1,
                "ranks": [
                    {
                        "rank": rank,
                        "busy_s": own.busy_s,
                        "optimizer_s": own.optimizer_s,
                        "idle_s": idle_by_cause(timeline, rank),
                        "peak_bytes": own.peak_bytes,
                    }
                    for rank, own in enumerate(timeline.ranks)
                ],
            }
        )
    else:
        show(idle_table(timeline))
    return 0
