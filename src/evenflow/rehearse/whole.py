"""A whole step from rehearsed ranks: the plan with measured seconds in place of its own, and a profile made of them.

What a rank takes alone was measured; transfers, reductions and what shards of a stage add up are the plan's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median

import torch

from evenflow.cost import TIMED_PARTS, LayerCost, Profile, RankCost, StageCost, combined_s, spread_s
from evenflow.cost.catalogue import exchanged_s
from evenflow.cost.pinned import fabric_of
from evenflow.cost.roofline import Roofline
from evenflow.plan import Plan, StagePlan
from evenflow.program import WeightBackward, plan_program
from evenflow.rehearse.rehearsal import Rehearsed, layer_kind
from evenflow.spec import Combined, Model, this_machine
from evenflow.spec.accelerators import ACCELERATORS


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
    """A plan's seconds in forwards and backwards of a rank's step, less those of what its shards put together."""
    sums = tensor_sums(plan, model)
    together = sum(sums[stage].forward_s + sums[stage].backward_s for stage in plan.ranks[rank].stages)
    return max(plan.ranks[rank].busy_s - plan.microbatches * together, 0.0)


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


def rehearsed_profile(plan: Plan, model: Model, found: Mapping[int, Rehearsed]) -> Profile:
    """The rehearsed seconds by layer, for a planner to read.

    A rank runs stages, not layers. So of each stage its layers get their part as the plan shares it out, and layers
    that the plan takes to be equal get the mean over all stages.

    Args:
        plan: what was rehearsed.
        model: its model, described.
        found: every rank's rehearsal, or that of one that does the same.
    """
    whole = rehearsed_plan(plan, model, found)
    layers = _layer_costs(plan, whole)
    return Profile(
        machine=this_machine(),
        torch_version=torch.__version__,
        model=plan.model,
        fingerprint=plan.fingerprint,
        micro_batch_size=plan.micro_batch_size,
        seq_length=plan.seq_length,
        processes=plan.axes.processes,
        threads=plan.threads,
        layers=_alike(plan, layers),
        stage_forward_s=plan.stage_forward_s,
        stage_backward_s=plan.stage_backward_s,
        link=plan.link if plan.network is None else plan.network.link,  # a profile has one for all edges
        reduce_s=plan.reduce_s,
        peak_flops=plan.peak_flops,
        cluster=plan.cluster,
        link_origin=plan.costs["link"],
        process_bytes=_process_bytes(plan, found),
        sum_link=plan.sum_link,
    )


def _process_bytes(plan: Plan, found: Mapping[int, Rehearsed]) -> int:
    """What processes held beside the tensors that the plan expects."""
    beside = [own.peak_bytes - plan.ranks[rank].peak_bytes + plan.process_bytes for rank, own in found.items()]
    return max(int(median(beside)), 0)


def _layer_costs(plan: Plan, whole: Plan) -> list[LayerCost]:
    """Each layer's seconds, its stage's shared out as the plan does."""
    found: list[LayerCost] = []
    for planned, measured in zip(plan.stages, whole.stages, strict=True):
        rank = planned.rank
        scale = _scale(plan, planned, measured.cost)
        norm = _ratio(whole.ranks[rank].cost.norm_s, plan.ranks[rank].cost.norm_s)
        update = _ratio(whole.ranks[rank].cost.optimizer_s, plan.ranks[rank].cost.optimizer_s)
        update *= plan.axes.dp if plan.zero else 1  # a profile's is that of the whole update
        for number in planned.layers:
            layer = plan.layers[number]
            cost, again_s = layer.cost, layer.cost.again_s(layer.recompute)
            found.append(
                LayerCost(
                    forward_s=cost.forward_s * scale.forward_s,
                    backward_s=(cost.backward_s - again_s) * scale.backward_s,
                    input_s=(cost.input_s - again_s) * scale.input_s,
                    weight_s=cost.weight_s * scale.weight_s,
                    norm_s=cost.norm_s * norm,
                    optimizer_s=cost.optimizer_s * update,
                    recompute_s=cost.recompute_s * scale.backward_s,
                    selective_s=cost.selective_s * scale.backward_s,
                )
            )
    return found


def _scale(plan: Plan, planned: StagePlan, measured: StageCost) -> StageCost:
    """How many times the planned seconds of a stage's layers were measured, by kind.

    A program runs backwards whole or in halves; those that it does not run are taken to be off as the others are.
    """
    layers = [plan.layers[layer].cost for layer in planned.layers]
    outside = StageCost(plan.stage_forward_s, plan.stage_backward_s, plan.stage_backward_s, 0.0)
    found = {
        name: _ratio(getattr(measured, name) - getattr(outside, name), sum(getattr(own, name) for own in layers))
        for name in StageCost.__slots__
    }
    if any(isinstance(action, WeightBackward) for action in plan_program(plan).ranks[planned.rank]):
        halves = measured.input_s + measured.weight_s - outside.input_s
        found["backward_s"] = _ratio(halves, sum(own.input_s + own.weight_s for own in layers))
    else:
        found["input_s"] = found["weight_s"] = found["backward_s"]
    return StageCost(**found)


def _ratio(measured: float, planned: float) -> float:
    return max(measured, 0.0) / planned if planned > 0 else 1.0


def _alike(plan: Plan, layers: Sequence[LayerCost]) -> tuple[LayerCost, ...]:
    """The same, layers of one kind with one cost."""
    kinds = [layer_kind(layer) for layer in plan.layers]
    means: dict[tuple[object, ...], LayerCost] = {}
    for kind in set(kinds):
        own = [cost for cost, other in zip(layers, kinds, strict=True) if other == kind]
        means[kind] = LayerCost(**{name: fmean(getattr(cost, name) for cost in own) for name in TIMED_PARTS})
    return tuple(means[kind] for kind in kinds)
