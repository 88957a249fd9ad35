"""From what stages took to what layers take: ranks run stages, and a profile has layers.

Layers that a plan takes to cost the same are of one kind. What a kind takes is so many times what the plan says, and a
stage takes the sum over its layers: a linear equation for each stage, of which the least squares are taken, and of
several answers that nearest to one factor for all kinds (`numpy.linalg.lstsq`, on what differs from that). So a stage
between the ends tells what a block takes, and then the last one what the head does. Less than nothing is taken by none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from evenflow.cost import LayerCost, RankCost, StageCost
from evenflow.plan import LayerPlan, Plan
from evenflow.program import WeightBackward, plan_program

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Factors:
    """How many times the planned seconds each kind of layer takes."""

    forward: _Floats
    backward: _Floats
    input: _Floats
    weight: _Floats


def runs_halves(plan: Plan) -> bool:
    """Whether any of a plan's ranks runs a backward in halves."""
    return any(_halved_stages(plan))


def layer_costs(plan: Plan, stages: Sequence[StageCost], once: Mapping[int, RankCost]) -> tuple[LayerCost, ...]:
    """Each layer's seconds, nothing recomputed.

    Args:
        plan: what was rehearsed.
        stages: the seconds that each of its stages took.
        once: what each of its ranks took once a step.
    """
    bases = [_base(layer) for layer in plan.layers]
    keys = [_key(layer, base) for layer, base in zip(plan.layers, bases, strict=True)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    kinds = [numbers[key] for key in keys]
    factors = _factors(plan, stages, kinds)
    norms, updates = _once(plan, once, kinds)
    return tuple(
        LayerCost(
            forward_s=base.forward_s * float(factors.forward[kind]),
            backward_s=base.backward_s * float(factors.backward[kind]),
            input_s=base.input_s * float(factors.input[kind]),
            weight_s=base.weight_s * float(factors.weight[kind]),
            norm_s=norms[kind],
            optimizer_s=updates[kind],
            recompute_s=base.recompute_s * float(factors.input[kind]),  # it is run again in the input's half
            selective_s=base.selective_s * float(factors.input[kind]),
        )
        for base, kind in zip(bases, kinds, strict=True)
    )


def _base(layer: LayerPlan) -> LayerCost:
    """A layer's planned seconds with nothing recomputed."""
    own, again_s = layer.cost, layer.cost.again_s(layer.recompute)
    return replace(own, backward_s=max(own.backward_s - again_s, 0.0), input_s=max(own.input_s - again_s, 0.0))


def _key(layer: LayerPlan, base: LayerCost) -> tuple[str, ...]:
    """Equal for layers that a plan takes to cost the same, run again or not; what was taken off again is rounded."""
    return (str(layer.parameter_bytes), *(f"{getattr(base, name) or 0.0:.9g}" for name in LayerCost.__slots__))


def _factors(plan: Plan, stages: Sequence[StageCost], kinds: Sequence[int]) -> _Factors:
    """From whole backwards or from halves, whichever a stage's program has; the others are off as the first are."""
    halved = _halved_stages(plan)

    def solved(
        planned: Callable[[LayerCost, bool], float], took: Callable[[StageCost, bool], float], outside_s: float,
        of: Sequence[int],
    ) -> _Floats:  # fmt: skip
        table = np.zeros((len(of), max(kinds) + 1))
        for row, stage in enumerate(of):
            for layer in plan.stages[stage].layers:
                table[row, kinds[layer]] += planned(plan.layers[layer].cost, halved[stage])
        seconds = np.array([max(took(stages[stage], halved[stage]) - outside_s, 0.0) for stage in of])
        return _solve(table, seconds)

    every = range(len(plan.stages))
    in_halves = [stage for stage in every if halved[stage]]
    backward = solved(
        lambda own, halves: own.input_s + own.weight_s if halves else own.backward_s,
        lambda own, halves: own.input_s + own.weight_s if halves else own.backward_s,
        plan.stage_backward_s, every,
    )  # fmt: skip
    return _Factors(
        solved(lambda own, _: own.forward_s, lambda own, _: own.forward_s, plan.stage_forward_s, every),
        backward,
        solved(lambda own, _: own.input_s, lambda own, _: own.input_s, plan.stage_backward_s, in_halves)
        if in_halves else backward,
        solved(lambda own, _: own.weight_s, lambda own, _: own.weight_s, 0.0, in_halves) if in_halves else backward,
    )  # fmt: skip


def _solve(table: _Floats, seconds: _Floats) -> _Floats:
    """A factor for each kind, [kinds], from planned seconds [stages, kinds] and those that stages took [stages]."""
    planned = table.sum()
    even = seconds.sum() / planned if planned > 0 else 1.0
    left = np.ones(table.shape[1], dtype=np.bool_)  # kinds that take something
    while left.any():
        beside = seconds - even * table[:, left].sum(axis=1)
        more = np.linalg.lstsq(table[:, left], beside, rcond=None)[0]
        found = np.zeros(len(left))
        found[left] = even + more
        if (found >= 0).all():
            return found
        left &= found >= 0
    return np.full(len(left), even)


def _once(plan: Plan, once: Mapping[int, RankCost], kinds: Sequence[int]) -> tuple[list[float], list[float]]:
    """Seconds of each kind's norms and of its whole update: of a rank's its layers get their part as planned.

    Where no norms are planned, which are a part of a preset's update, they are shared out as updates are.
    """
    shares = plan.axes.copies if plan.zero else 1  # of an update a rank took one
    norms: list[list[float]] = [[] for _ in range(max(kinds) + 1)]
    updates: list[list[float]] = [[] for _ in range(max(kinds) + 1)]
    for rank in plan.ranks:
        layers = [layer for stage in rank.stages for layer in plan.stages[stage].layers]
        costs = [plan.layers[layer].cost for layer in layers]
        update_s = [own.optimizer_s for own in costs]
        norm_s = [own.norm_s for own in costs] if any(own.norm_s for own in costs) else update_s
        for layer, norm, update in zip(layers, _parts(norm_s), _parts(update_s), strict=True):
            norms[kinds[layer]].append(once[rank.rank].norm_s * norm)
            updates[kinds[layer]].append(once[rank.rank].optimizer_s * shares * update)
    return [fmean(own) for own in norms], [fmean(own) for own in updates]


def _parts(seconds: Sequence[float]) -> list[float]:
    whole = sum(seconds)
    return [own / whole if whole > 0 else 1 / len(seconds) for own in seconds]


def _halved_stages(plan: Plan) -> list[bool]:
    program = plan_program(plan)
    halved = {action.stage for actions in program.ranks for action in actions if isinstance(action, WeightBackward)}
    return [stage in halved for stage in range(len(plan.stages))]
