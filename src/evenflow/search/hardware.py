"""Hardware of ranks, made in one place from a plan or from a split of its layers, and the work that a schedule is for.

Whatever a plan's costs learn to say (links that differ by direction, ranks of different speed) has to reach the
simulator, the schedules and the bound alike; it does if all three ask here.
"""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.cost import Costs, MemoryModel, rank_costs, stage_costs
from evenflow.plan import Plan
from evenflow.program import Work, linked_work
from evenflow.simulate import Hardware


def split_hardware(
    costs: Costs,
    memory: MemoryModel,
    split: Sequence[Sequence[int]],
    stage_rank: Sequence[int],
    at_once: int | None = None,
) -> Hardware:
    """What the simulator needs to know of a split.

    Args:
        costs: seconds of each layer and transfer.
        memory: bytes of each layer.
        split: the layers of each stage.
        stage_rank: the rank of each stage.
        at_once: how many ranks compute at full speed at once; by default all.
    """
    return Hardware(
        stages=stage_costs(costs, split),
        ranks=rank_costs(costs, split, stage_rank),
        links=costs.link,
        memory=memory.stages(split),
        reduce_s=costs.reduce_s,
        at_once=at_once,
    )


def plan_hardware(plan: Plan) -> Hardware:
    """What the simulator needs to know of a plan, from the figures that it holds."""
    return Hardware(
        stages=[stage.cost for stage in plan.stages],
        ranks=[rank.cost for rank in plan.ranks],
        links=plan.link,
        memory=[stage.memory for stage in plan.stages],
        reduce_s=plan.reduce_s,
        at_once=plan.at_once,
    )


def plan_work(
    stage_rank: tuple[int, ...], microbatches: int, hardware: Hardware, caps: Sequence[float] | None = None
) -> Work:
    """What a schedule for this hardware is made from, every rank on a processor of its own."""
    costs = hardware.own_stages(stage_rank)
    return linked_work(stage_rank, microbatches, costs, hardware.memory, hardware.links, caps)
