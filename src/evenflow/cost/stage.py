"""What a stage and a rank cost, given which layers they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evenflow.cost.costs import Costs


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds of one stage for one microbatch.

    Attributes:
        forward_s: F.
        backward_s: B, the whole backward.
        input_s: I, the half that makes the input's gradient.
        weight_s: W, the half that makes the weights' gradients.
    """

    forward_s: float
    backward_s: float
    input_s: float
    weight_s: float


@dataclass(frozen=True, slots=True)
class RankCost:
    """Seconds of one rank, once a step."""

    norm_s: float
    optimizer_s: float


def at_speeds(
    stages: Sequence[StageCost], stage_rank: Sequence[int], speeds: Sequence[float] | None
) -> tuple[StageCost, ...]:
    """The cost of each stage on its own rank, where ranks' speeds differ."""
    if speeds is None:
        return tuple(stages)
    by = [speeds[rank] for rank in stage_rank]
    return tuple(
        StageCost(own.forward_s / at, own.backward_s / at, own.input_s / at, own.weight_s / at)
        for own, at in zip(stages, by, strict=True)
    )


def stage_costs(costs: Costs, stages: Sequence[Sequence[int]]) -> tuple[StageCost, ...]:
    """The cost of each stage; `stages[s]` lists the layers that stage `s` holds."""
    return tuple(
        StageCost(
            forward_s=costs.stage_forward_s + sum(costs.layers[layer].forward_s for layer in layers),
            backward_s=costs.stage_backward_s + sum(costs.layers[layer].backward_s for layer in layers),
            input_s=costs.stage_backward_s + sum(costs.layers[layer].input_s for layer in layers),
            weight_s=sum(costs.layers[layer].weight_s for layer in layers),
        )
        for layers in stages
    )


def rank_costs(costs: Costs, stages: Sequence[Sequence[int]], stage_rank: Sequence[int]) -> tuple[RankCost, ...]:
    """The once-a-step cost of each rank; `stage_rank[s]` is the rank that holds stage `s`."""
    held: list[list[int]] = [[] for _ in range(max(stage_rank) + 1)]
    for layers, rank in zip(stages, stage_rank, strict=True):
        held[rank].extend(layers)
    return tuple(
        RankCost(
            norm_s=sum(costs.layers[layer].norm_s for layer in layers),
            optimizer_s=sum(costs.layers[layer].optimizer_s for layer in layers),
        )
        for layers in held
    )
