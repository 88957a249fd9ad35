"""A whole step from rehearsed ranks: the plan with measured seconds in place of its own, and a profile made of them.

What a rank takes alone was measured; transfers, reductions and what shards of a stage add up are the plan's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from statistics import median

import torch

from evenflow.cost import Profile, RankCost, Rehearsal, StageCost, combined_s, spread_s
from evenflow.cost.catalogue import exchanged_s
from evenflow.cost.measured_preset import dimensions_hash
from evenflow.cost.pinned import fabric_of
from evenflow.cost.roofline import Roofline
from evenflow.plan import Plan
from evenflow.program import plan_program
from evenflow.rehearse.layers import layer_costs, runs_halves
from evenflow.rehearse.rehearsal import Rehearsed, part_of
from evenflow.spec import Combined, Model, this_machine
from evenflow.spec.accelerators import ACCELERATORS
from evenflow.spec.architecture import Architecture


def tensor_sums(plan: Plan, model: Model) -> tuple[StageCost, ...]:
    """For each stage, the seconds that the processes which share it take to put tensors together: none without tp.

    They are in a plan's costs and not in what is rehearsed.
    """
    found: list[StageCost] = []
    seconds = _exchange(plan)
    for stage in plan.stages:
        layers = [model.layers[layer] for layer in stage.layers]
        forward_s = sum(seconds(layer.forward_combined) for layer in layers)
        backward_s = sum(seconds(layer.backward_combined) for layer in layers)
        for layer, number in zip(layers, stage.layers, strict=True):
            again = layer.again(plan.layers[number].recompute)
            backward_s += seconds(again.combined) if again is not None else 0.0
        found.append(StageCost(forward_s, backward_s, backward_s, 0.0))
    return tuple(found)


def _exchange(plan: Plan) -> Callable[[Iterable[Combined]], float]:
    """How long shards of a stage talk: over the links of the catalogue's device, or, if it has none, the plan's."""
    tp = plan.axes.tp
    if plan.device not in ACCELERATORS:
        return lambda asked: combined_s(plan.link, tp, asked)
    fabric = fabric_of(ACCELERATORS[plan.device], Roofline())
    return lambda asked: exchanged_s(fabric, tp, asked)


def predicted_compute_s(plan: Plan, model: Model, rank: int) -> float:
    """A plan's seconds in forwards and backwards of a rank's step, less those of what its shards put together.

    They are those on cores of its own: where the plan's ranks take turns, a rank is busy for longer.
    """
    sums = tensor_sums(plan, model)
    together = sum(sums[stage].forward_s + sums[stage].backward_s for stage in plan.ranks[rank].stages)
    busy_s = plan.ranks[rank].busy_s if plan.at_once >= len(plan.ranks) else _alone_s(plan, rank)
    return max(busy_s - plan.microbatches * together, 0.0)


def _alone_s(plan: Plan, rank: int) -> float:
    parts = [part for action in plan_program(plan).ranks[rank] if (part := part_of(action)) is not None]
    return float(sum(getattr(plan.stages[stage].cost, name) for stage, name in parts if stage >= 0))


def rehearsed_plan(plan: Plan, model: Model, found: Mapping[int, Rehearsed]) -> Plan:
    """The plan with what its ranks took: from `search.plan_timeline` of it comes the whole step.

    Args:
        plan: what was rehearsed.
        model: its model, described.
        found: every rank's rehearsal, or that of one that does the same.
    """
    sums = tensor_sums(plan, model)
    stages, ranks = list(plan.stages), list(plan.ranks)
    for rank, own in found.items():
        for stage, cost in zip(plan.ranks[rank].stages, own.stages, strict=True):
            stages[stage] = replace(stages[stage], cost=_measured(stages[stage].cost, cost, sums[stage]))
        once = RankCost(own.once.norm_s, own.once.optimizer_s + _gathered_s(plan, rank))
        ranks[rank] = replace(ranks[rank], cost=once, busy_s=own.compute_s, peak_bytes=own.peak_bytes)
    return replace(plan, stages=tuple(stages), ranks=tuple(ranks), costs={**plan.costs, "layers": "measured"})


def _gathered_s(plan: Plan, rank: int) -> float:
    """The seconds in which replicas give each other what they have updated, under ZeRO 1."""
    held = [plan.stages[stage].memory.parameter_bytes for stage in plan.ranks[rank].stages]
    return sum(spread_s(plan.layer_costs.adding, plan.axes.dp, size) for size in held) if plan.zero else 0.0


def _measured(planned: StageCost, measured: StageCost, sums: StageCost) -> StageCost:
    """A stage's seconds: those measured, with its sums; of a kind that its program does not have the planned ones."""
    return StageCost(
        **{
            name: getattr(measured, name) + getattr(sums, name) if getattr(measured, name) else getattr(planned, name)
            for name in StageCost.__slots__
        }
    )


def rehearsed_profile(
    plan: Plan, model: Model, found: Mapping[int, Rehearsed], preset: Architecture | None = None
) -> Profile:
    """The rehearsed seconds by layer, for a planner to read.

    A rank runs stages, not layers: `rehearse.layers` says how these come from those.

    Args:
        plan: what was rehearsed.
        model: its model, described.
        found: every rank's rehearsal, or that of one that does the same.
        preset: what the model is, where it is known by its dimensions alone; it is planned with no more of the profile
            than its layers.
    """
    whole = rehearsed_plan(plan, model, found)
    return Profile(
        machine=this_machine(),
        torch_version=torch.__version__,
        model=plan.model,
        fingerprint=dimensions_hash(preset) if preset else plan.fingerprint,
        micro_batch_size=plan.micro_batch_size,
        seq_length=plan.seq_length,
        processes=plan.axes.processes,
        threads=plan.threads,
        layers=layer_costs(
            plan, [stage.cost for stage in whole.stages], {rank: own.once for rank, own in found.items()}
        ),
        stage_forward_s=plan.stage_forward_s,
        stage_backward_s=plan.stage_backward_s,
        link=plan.link if plan.network is None else plan.network.link,  # a profile has one for all edges
        reduce_s=plan.reduce_s,
        peak_flops=plan.peak_flops,
        cluster=plan.cluster,
        link_origin=plan.costs["link"],
        process_bytes=_process_bytes(plan, found),
        sum_link=plan.sum_link,
        rehearsal=Rehearsal(
            ran_on=next(iter(found.values())).device,
            device=plan.device,
            tp=plan.axes.tp,
            dtype=plan.dtype,
            trainer=plan.trainer,
            halves="measured" if runs_halves(plan) else plan.costs.get("halves", "assumed"),
            is_preset=preset is not None,
        ),
    )


def _process_bytes(plan: Plan, found: Mapping[int, Rehearsed]) -> int:
    """What processes held beside the tensors that the plan expects."""
    beside = [own.peak_bytes - plan.ranks[rank].peak_bytes + plan.process_bytes for rank, own in found.items()]
    return max(int(median(beside)), 0)
