"""A plan read back: its program, and the timeline that its own figures predict, under any schedule."""

from __future__ import annotations

from evenflow.plan import Plan
from evenflow.program import Program, build_program
from evenflow.simulate import free_transfers, simulate
from evenflow.timeline import Timeline


def plan_program(plan: Plan, schedule: str | None = None) -> Program:
    """The plan's program, or that of another schedule over the same stages."""
    return build_program(schedule or plan.schedule, len(plan.stages), plan.microbatches)


def plan_timeline(plan: Plan, schedule: str | None = None, with_transfers: bool = True) -> Timeline:
    """Simulate a plan from the costs it holds.

    Args:
        plan: the plan.
        schedule: another schedule than the plan's own.
        with_transfers: False takes transfers and the norm's reduction as free (`schedule_bound`).
    """
    return simulate(
        plan_program(plan, schedule),
        [stage.cost for stage in plan.stages],
        [rank.cost for rank in plan.ranks],
        plan.link if with_transfers else free_transfers(),
        [stage.memory for stage in plan.stages],
        plan.reduce_s if with_transfers else 0.0,
        plan.at_once,
    )
