"""A plan read back: its program, the timeline that its own figures predict, and the same work under other schedules."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from evenflow.errors import ImpossibleError, InputError
from evenflow.plan import Bound, Plan, Search, step_bound
from evenflow.program import (
    AUTO,
    SCHEDULES,
    find_schedule,
    misfit,
    order_text,
    plan_program,
)
from evenflow.search.hardware import plan_hardware, plan_work
from evenflow.search.order_bound import order_bound_s
from evenflow.search.planner import predict, rank_plans, stage_plans
from evenflow.search.problem import Problem, place_stages
from evenflow.search.solve import solve
from evenflow.simulate import free_transfers, simulate
from evenflow.timeline import Timeline
from evenflow.units import format_bytes


def plan_timeline(plan: Plan, schedule: str | None = None, with_transfers: bool = True) -> Timeline:
    """Simulate a plan from the costs it holds.

    Args:
        plan: the plan.
        schedule: another schedule than the plan's own.
        with_transfers: False takes transfers and reductions as free (`schedule_bound`).

    Raises:
        InputError, ImpossibleError: as `reschedule` does, under another schedule.
    """
    if schedule is not None and schedule != plan.schedule:
        plan = reschedule(plan, schedule)
    hardware = plan_hardware(plan)
    if not with_transfers:
        hardware = replace(hardware, links=free_transfers(), reduce_s=0.0, reduce_grad_s=None, reduce_tied_s=None)
    return simulate(plan_program(plan), hardware)


def reschedule(plan: Plan, schedule: str, stages_per_rank: int | None = None) -> Plan:
    """The same layers on the same ranks under another schedule.

    Stages stay as they are where the schedule can run them; else the layers are split anew.

    Raises:
        InputError: the schedule is not known, or there are too few layers for its stages.
        ImpossibleError: it does not keep under the plan's memory limit, or under that of a rank.
    """
    began = time.perf_counter()
    ranks = len(plan.ranks)
    placed = place_stages(schedule, ranks, len(plan.layers), stages_per_rank, plan.axes.tp)
    keeps = stages_per_rank is None and _can_keep(plan, schedule)
    problem = Problem(
        model=plan,
        costs=plan.layer_costs,
        microbatches=plan.microbatches,
        schedule=schedule,
        stage_rank=plan.stage_rank if keeps else placed,
        limit=plan.memory_limit,
        at_once=plan.at_once,
    )
    solution = solve(problem, plan.stage_layers if keeps else None)
    step_s = solution.timeline.step_s
    bound_s = min(plan.bound.step_s, step_bound(problem.costs, problem.at_once, problem.microbatches), step_s)
    found = replace(
        plan,
        schedule=schedule,
        order=None if solution.order is None else order_text(solution.order),
        posting=solution.posting,
        stages=stage_plans(solution.split, problem),
        ranks=rank_plans(solution, problem),
        predicted=predict(
            solution.timeline,
            mfu=plan.predicted.mfu * plan.predicted.step_s / step_s,
            tokens=plan.global_batch_size * plan.seq_length,
        ),
        # A preset's is for the layouts and schedules that were searched, which this one need not be among.
        bound=Bound(bound_s, step_s / bound_s - 1),
        search=Search(solution.considered, time.perf_counter() - began),
    )
    over = most_over(found)
    if over > 0 and plan.memory_limits is not None:
        rank, limit = max(enumerate(plan.memory_limits), key=lambda own: found.ranks[own[0]].peak_bytes - own[1])
        peak = found.ranks[rank].peak_bytes
        raise ImpossibleError(
            f"under {schedule} rank {rank} would need {format_bytes(peak)} of the {format_bytes(limit)} that its "
            f"device leaves, {format_bytes(over)} more than there is; {plan.schedule} fits"
        )
    return found


def most_over(plan: Plan) -> int:
    """By how many bytes a rank is over what it may use, at the most; negative where all keep under it."""
    limits = plan.memory_limits or (plan.memory_limit,) * len(plan.ranks)
    return max(rank.peak_bytes - limit for rank, limit in zip(plan.ranks, limits, strict=True))


def order_gap(plan: Plan) -> float:
    """How far its step is above what any order of its stages' compute actions could reach: step / bound - 1."""
    hardware = plan_hardware(plan)
    return plan.predicted.step_s / order_bound_s(plan_work(plan.stage_rank, plan.microbatches, hardware), hardware) - 1


def _can_keep(plan: Plan, schedule: str) -> bool:
    """Whether a schedule runs the plan's stages as they are, and there are as many as it asks for."""
    if schedule == AUTO:
        return True
    enough = len(plan.stages) >= len(plan.ranks) * find_schedule(schedule).stages_per_rank
    return enough and misfit(schedule, plan.stage_rank) is None


@dataclass(frozen=True, slots=True)
class Compared:
    """One schedule for a plan's layers: the plan that it makes, or why it makes none."""

    schedule: str
    plan: Plan | None
    reason: str


def compare_schedules(plan: Plan, quickly: bool = False) -> Iterator[Compared]:
    """The plan under every schedule, `auto` last, each as soon as it is known.

    Quickly, only under those that run its stages as they are, in an order that hangs on no costs: milliseconds each,
    where a new split and a search for an order may take minutes in a large plan. The others then say so.
    """
    for schedule in (*SCHEDULES, AUTO):
        if quickly and schedule != plan.schedule and _takes_long(plan, schedule):
            yield Compared(schedule, None, "takes a while for a plan of this size: `evenflow simulate PLAN --compare`")
            continue
        try:
            yield Compared(schedule, plan if schedule == plan.schedule else reschedule(plan, schedule), "")
        except (InputError, ImpossibleError) as error:
            yield Compared(schedule, None, str(error))


def _takes_long(plan: Plan, schedule: str) -> bool:
    return schedule == AUTO or SCHEDULES[schedule].by_costs or not _can_keep(plan, schedule)
