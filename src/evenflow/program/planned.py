"""A plan's program, made from the costs that the plan holds: so that whoever reads a plan reads the same program."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from evenflow.cost import LinkCost, Links, StageCost, StageMemory, at_speeds
from evenflow.plan import Plan
from evenflow.program.build import build_program
from evenflow.program.lower import lower
from evenflow.program.program import Program
from evenflow.program.text import parse_order
from evenflow.program.verify import verify
from evenflow.program.work import Work, make_work


def plan_caps(plan: Plan) -> tuple[float, ...]:
    """The bytes that each of a plan's ranks may hold."""
    return tuple(map(float, plan.memory_limits or (plan.memory_limit,) * len(plan.ranks)))


def plan_program(plan: Plan) -> Program:
    """The plan's program.

    Raises:
        ProgramError: its order is not one of its stages and microbatches.
    """
    work = _work(plan) if plan.posting == "costs" else None
    reduces, tied = plan.axes.copies > 1, plan.tied
    if plan.order is None:
        return build_program(plan.schedule, plan.stage_rank, plan.microbatches, work, reduces=reduces, tied=tied)
    order = parse_order(plan.order)
    return lower(order, plan.stage_rank, plan.microbatches, work, reduces=reduces, tied=tied)


def verify_plan(plan: Plan) -> Program:
    """The plan's program, proved: it is legal, and no rank ever holds more than the plan's memory limit.

    Raises:
        ProgramError: a rule is broken; the text names the rank, the action and the reason.
    """
    program = plan_program(plan)
    verify(program, [stage.memory for stage in plan.stages], plan_caps(plan))
    return program


def linked_work(
    stage_rank: Sequence[int],
    microbatches: int,
    costs: Sequence[StageCost],
    memory: Sequence[StageMemory],
    link: LinkCost | Links,
    caps: Sequence[float] | None = None,
) -> Work:
    """Work over links: there goes what the stage before puts out, back what the stage after takes in."""
    links = link if isinstance(link, Links) else Links(link)
    edges = list(pairwise(stage_rank))
    there = [links.cost(edge).seconds(own.output_bytes) for edge, own in zip(edges, memory[:-1], strict=True)]
    back = [links.cost(edge[::-1]).seconds(own.input_bytes) for edge, own in zip(edges, memory[1:], strict=True)]
    return make_work(stage_rank, microbatches, costs, memory, there, caps, back)


def _work(plan: Plan) -> Work:
    memory = [stage.memory for stage in plan.stages]
    costs = at_speeds([stage.cost for stage in plan.stages], plan.stage_rank, plan.speeds)
    return linked_work(plan.stage_rank, plan.microbatches, costs, memory, plan.links)
