"""Hardware of ranks, made in one place from a plan or from a split of its layers, and the work that a schedule is for.

Whatever a plan's costs learn to say (links that differ by direction, ranks of different speed, replicas) has to reach
the simulator, the schedules and the bound alike; it does if all three ask here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evenflow.cost import (
    Costs,
    LinkCost,
    Links,
    MemoryModel,
    StageMemory,
    all_reduce_s,
    rank_costs,
    spread_s,
    stage_costs,
)
from evenflow.plan import Plan, tied_stages
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
    stages, tied_bytes = memory.stages(split, stage_rank), memory.model.tied_gradient_bytes
    ranks = list(rank_costs(costs, split, stage_rank))
    gathers = costs.shares > 1 and not costs.reduces_by_layer
    for stage, rank in enumerate(stage_rank if gathers else ()):  # what each has updated goes to all of them
        gather_s = spread_s(costs.adding, costs.shares, stages[stage].parameter_bytes)
        ranks[rank] = replace(ranks[rank], optimizer_s=ranks[rank].optimizer_s + gather_s)
    links = costs.links(stage_rank)
    return Hardware(
        stages=stage_costs(costs, split),
        ranks=ranks,
        links=links,
        memory=stages,
        reduce_s=costs.reduce_s,
        reduce_grad_s=_by_layer(costs, split)
        or _reduce_grad_s(costs.adding, costs.replicas, costs.shares, stages, stage_rank, tied_bytes),
        reduce_tied_s=_reduce_tied_s(costs, links, stage_rank, tied_bytes),
        at_once=at_once,
        speeds=costs.speeds,
    )


def plan_hardware(plan: Plan) -> Hardware:
    """What the simulator needs to know of a plan, from the figures that it holds."""
    stages, replicas = [stage.memory for stage in plan.stages], plan.axes.copies
    shares = replicas if plan.zero else 1
    return Hardware(
        stages=[stage.cost for stage in plan.stages],
        ranks=[rank.cost for rank in plan.ranks],
        links=plan.links,
        memory=stages,
        reduce_s=plan.reduce_s,
        reduce_grad_s=_by_layer(plan.layer_costs, plan.stage_layers)
        or _reduce_grad_s(plan.layer_costs.adding, replicas, shares, stages, plan.stage_rank, plan.tied_gradient_bytes),
        reduce_tied_s=_reduce_tied_s(plan.layer_costs, plan.links, plan.stage_rank, plan.tied_gradient_bytes),
        at_once=plan.at_once,
        speeds=plan.speeds,
    )


def _by_layer(costs: Costs, split: Sequence[Sequence[int]]) -> tuple[float, ...] | None:
    """For each stage, adding its gradients, where its layers say what that takes and there are replicas."""
    if costs.replicas == 1 or not costs.reduces_by_layer:
        return None
    return tuple(sum(costs.layers[layer].reduce_s or 0.0 for layer in layers) for layers in split)


def _reduce_grad_s(
    link: LinkCost,
    replicas: int,
    shares: int,
    stages: Sequence[StageMemory],
    stage_rank: Sequence[int],
    tied_gradient_bytes: int,
) -> tuple[float, ...] | None:
    """For each stage, adding its gradients over the replicas; copies of tied weights have a sum of their own."""
    if replicas == 1:
        return None
    apart = stage_rank[0] != stage_rank[-1]
    ends = (0, len(stages) - 1)
    seconds = spread_s if shares > 1 else all_reduce_s
    return tuple(
        seconds(link, replicas, own.gradient_bytes - (tied_gradient_bytes if apart and stage in ends else 0))
        for stage, own in enumerate(stages)
    )


def _reduce_tied_s(
    costs: Costs, links: Links, stage_rank: Sequence[int], tied_gradient_bytes: int
) -> tuple[float, ...] | None:
    """For each group of tied stages, adding the gradients of all copies, those of every replica.

    Layers that say what adding their gradients takes have the replicas' in that: then those of one replica are left.
    """
    groups = tied_stages(len(stage_rank), tied_gradient_bytes)
    replicas = 1 if costs.reduces_by_layer else costs.replicas
    copies = [replicas * len({stage_rank[stage] for stage in group}) for group in groups]
    # Both ends of the pipeline add them to each other, and are as far apart as they are.
    adding = costs.sum_link or links.cost((stage_rank[0], stage_rank[-1]))
    return tuple(all_reduce_s(adding, number, tied_gradient_bytes) for number in copies) if groups else None


def plan_work(
    stage_rank: tuple[int, ...], microbatches: int, hardware: Hardware, caps: Sequence[float] | None = None
) -> Work:
    """What a schedule for this hardware is made from, every rank on a processor of its own."""
    costs = hardware.own_stages(stage_rank)
    return linked_work(stage_rank, microbatches, costs, hardware.memory, hardware.links, caps)
