"""The planner: cuts a model over a pipeline so that its simulated step is as short as can be found.

The exact partition proposes the split with the least bottleneck; it is not the schedule, whose fill and
drain weigh stages differently, so single layers are then moved from stage to stage for as long as the
simulator says that the step gets shorter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from evenflow.cost import Costs, MemoryModel, rank_costs, stage_costs
from evenflow.errors import ImpossibleError, InputError
from evenflow.plan import (
    Axes,
    Bound,
    Plan,
    Prediction,
    RankPlan,
    Search,
    StageCaps,
    StagePlan,
    least_needs,
    partition,
    step_bound,
)
from evenflow.program import Program, build_program, compute_order, peak_forms, verify
from evenflow.search.advice import advice
from evenflow.search.candidate import Candidate, Split, try_split
from evenflow.spec import Batch, Cluster, Model
from evenflow.units import format_bytes

# Actions that the search may simulate in all: some seconds of work; beyond it the best so far is taken.
_MOST_ACTIONS = 2_000_000


def make_plan(
    model: Model,
    cluster: Cluster,
    batch: Batch,
    costs: Costs,
    schedule: str = "1f1b",
    memory_limit: int | None = None,
    split: Split | None = None,
) -> Plan:
    """Plan `model` on all devices of `cluster`, one stage on each.

    Args:
        model: traced at the batch's microbatch shape.
        cluster: the devices; every one becomes a pipeline rank.
        batch: a step's work.
        costs: seconds of each layer.
        schedule: the schedule's name.
        memory_limit: bytes that a rank may use; by default the device's memory.
        split: the layers of each stage where they are given; by default they are searched for.

    Raises:
        InputError: more stages than layers, an unknown schedule.
        ImpossibleError: no split stays under the memory limit; the closest is named.
    """
    began = time.perf_counter()
    check_request(model, cluster, batch, schedule)
    stages = cluster.devices
    limit = memory_limit if memory_limit is not None else cluster.device.memory_bytes
    program = build_program(schedule, stages, batch.microbatches)
    verify(program)
    best, considered = _choose(model, cluster, costs, program, limit, split)
    _check_memory(best, limit)
    lower_bound = step_bound(costs, cluster.at_once, batch.microbatches)
    return Plan(
        model=model.name,
        fingerprint=model.fingerprint,
        cluster=cluster.name,
        threads=cluster.threads,
        at_once=cluster.at_once,
        axes=Axes(pp=stages),
        schedule=schedule,
        micro_batch_size=batch.micro_batch_size,
        microbatches=batch.microbatches,
        seq_length=batch.seq_length,
        layer_names=tuple(layer.name for layer in model.layers),
        stages=_stage_plans(best.split, program, costs, MemoryModel(model)),
        ranks=_rank_plans(best, program, costs),
        link=costs.link,
        reduce_s=costs.reduce_s,
        predicted=_prediction(best, model, batch, costs, cluster.at_once),
        bound=Bound(lower_bound, best.step_s / lower_bound - 1),
        search=Search(considered, time.perf_counter() - began),
        costs=costs.origin,
        notes=advice(model, costs, stages),
    )


def check_request(model: Model, cluster: Cluster, batch: Batch, schedule: str) -> None:
    """Refuse what no costs can mend, so that a caller need not measure first.

    Raises:
        InputError: more stages than layers, an unknown schedule, or tied embeddings on different stages.
    """
    stages = cluster.devices
    if stages > len(model.layers):
        raise InputError(
            f"{stages} stages need at least {stages} layers; {model.name} has {len(model.layers)}: "
            f"{len(model.layers)} processes or fewer would do"
        )
    if model.tied_embeddings and stages > 1:
        raise InputError(
            f"{model.name} ties its embedding to its head, which would live on different stages; "
            "one process, or tie_word_embeddings = false in its config, would work"
        )
    compute_order(schedule, stages, batch.microbatches)


def _choose(
    model: Model, cluster: Cluster, costs: Costs, program: Program, limit: int, split: Split | None
) -> tuple[Candidate, int]:
    """The best split found, or the given one, simulated on this cluster; and how many were simulated."""
    memory = MemoryModel(model)
    if split is None:
        best, considered = _search(model, costs, program, memory, limit)
    else:
        _check_split(split, model, program.stages)
        best, considered = try_split(split, program, costs, memory), 1
    if cluster.at_once < program.stages:
        # Ranks that share cores hide an uneven split from the step; it is chosen as if each had its own, so that
        # it stays even whatever the system makes of the sharing, and only then predicted as it will be.
        best = try_split(best.split, program, costs, memory, cluster.at_once)
    return best, considered


def _check_split(split: Split, model: Model, stages: int) -> None:
    in_order = [layer for layers in split for layer in layers]
    if in_order != list(range(len(model.layers))) or len(split) != stages or not all(split):
        raise InputError(
            f"the split {split} does not put each of the layers 0 to {len(model.layers) - 1} on one of {stages} stages"
        )


def _search(model: Model, costs: Costs, program: Program, memory: MemoryModel, limit: int) -> tuple[Candidate, int]:
    """The exact partition, then single-layer moves for as long as they shorten the simulated step."""
    start = _first_split(model, costs, program, limit)
    best = try_split(start, program, costs, memory)
    considered = 1
    most = max(_MOST_ACTIONS // sum(map(len, program.ranks)), 1)
    seen = {start}
    improved = True
    while improved:
        improved = False
        for split in _neighbours(best.split):
            if split in seen or considered >= most:
                continue
            seen.add(split)
            candidate = try_split(split, program, costs, memory)
            considered += 1
            if _rank_of(candidate, limit) < _rank_of(best, limit):
                best, improved = candidate, True
    return best, considered


def _rank_of(candidate: Candidate, limit: int) -> tuple[int, float, float]:
    """What makes a candidate better: it fits, then a shorter step (ties within 1e-9), then more even ranks."""
    over = max(candidate.peak_bytes - limit, 0)
    return over, round(candidate.step_s, 9), candidate.timeline.imbalance


def _first_split(model: Model, costs: Costs, program: Program, limit: int) -> Split:
    seconds = [layer.forward_s + layer.backward_s for layer in costs.layers]
    caps = StageCaps(_needs(model, program), [limit] * program.stages)
    return partition(seconds, program.stages, caps) or least_needs(caps)


def _needs(model: Model, program: Program) -> NDArray[np.float64]:
    """What every run of layers needs on every stage: exact, as each stage is alone on its rank."""
    memory = MemoryModel(model)
    layers = len(model.layers)
    runs = {(i, j): memory.stage(range(i, j)) for i in range(layers) for j in range(i + 1, layers + 1)}
    needs = np.zeros((program.stages, layers + 1, layers + 1))
    for stage in range(program.stages):
        forms = peak_forms(program, stage)
        for (first, end), own in runs.items():
            needs[stage, first, end] = max(form.bytes(own) for form in forms)
    return needs


def _neighbours(split: Split) -> Iterator[Split]:
    """Every split with a run of adjacent boundaries moved by one layer.

    So a layer's worth can go from any stage to any other through those between, each of which keeps its count.
    """
    ends = [0, *(layers[-1] + 1 for layers in split)]
    for length in range(1, len(split)):
        for first in range(1, len(split) - length + 1):
            last = first + length - 1
            for by in (-1, 1):
                moved = [end + by if first <= at <= last else end for at, end in enumerate(ends)]
                if moved[first - 1] < moved[first] and moved[last] < moved[last + 1]:
                    yield tuple(tuple(range(*pair)) for pair in pairwise(moved))


def _check_memory(best: Candidate, limit: int) -> None:
    worst = max(range(len(best.timeline.ranks)), key=lambda rank: best.timeline.ranks[rank].peak_bytes)
    if best.peak_bytes > limit:
        raise ImpossibleError(
            f"no plan fits: the closest has stage {worst} (layers {best.split[worst][0]} to {best.split[worst][-1]}) "
            f"needing {format_bytes(best.peak_bytes)} of {format_bytes(limit)}; "
            f"a memory limit of {format_bytes(best.peak_bytes * 1.005)} would fit, as may more processes "
            "or a smaller microbatch"
        )


def _stage_plans(split: Split, program: Program, costs: Costs, memory: MemoryModel) -> tuple[StagePlan, ...]:
    return tuple(
        StagePlan(rank, layers, cost, memory.stage(layers))
        for rank, layers, cost in zip(program.stage_rank, split, stage_costs(costs, split), strict=True)
    )


def _rank_plans(best: Candidate, program: Program, costs: Costs) -> tuple[RankPlan, ...]:
    return tuple(
        RankPlan(
            rank=rank,
            stages=tuple(stage for stage, owner in enumerate(program.stage_rank) if owner == rank),
            busy_s=best.timeline.ranks[rank].busy_s,
            peak_bytes=best.timeline.ranks[rank].peak_bytes,
            cost=cost,
        )
        for rank, cost in enumerate(rank_costs(costs, best.split, program.stage_rank))
    )


def _prediction(best: Candidate, model: Model, batch: Batch, costs: Costs, at_once: int) -> Prediction:
    step_s = best.step_s
    return Prediction(
        step_s=step_s,
        idle_fraction=best.timeline.idle_fraction,
        imbalance=best.timeline.imbalance,
        mfu=model.flops * batch.microbatches / (at_once * step_s * costs.peak_flops),
        tokens_per_s=batch.tokens / step_s,
    )
