"""The planner: cuts a model over a pipeline so that its simulated step is as short as can be found."""

from __future__ import annotations

import time
from dataclasses import replace

from evenflow.cost import Costs, MemoryModel, rank_costs, stage_costs
from evenflow.errors import ImpossibleError, InputError
from evenflow.plan import (
    Axes,
    Bound,
    LayerPlan,
    Plan,
    Prediction,
    RankPlan,
    Search,
    StagePlan,
    step_bound,
)
from evenflow.program import check_size, order_text, stages_of
from evenflow.search.advice import advice
from evenflow.search.problem import Problem, Split, place_stages
from evenflow.search.solve import Solution, solve
from evenflow.spec import Batch, Cluster, Model, Recompute, check_recompute
from evenflow.timeline import Timeline
from evenflow.units import format_bytes


def make_plan(
    model: Model,
    cluster: Cluster,
    batch: Batch,
    costs: Costs,
    schedule: str = "1f1b",
    memory_limit: int | None = None,
    split: Split | None = None,
    stages_per_rank: int | None = None,
    recompute: Recompute = "none",
) -> Plan:
    """Plan `model` on all devices of `cluster`.

    Args:
        model: traced at the batch's microbatch shape.
        cluster: the devices; every one becomes a pipeline rank.
        batch: a step's work.
        costs: seconds of each layer.
        schedule: the schedule's name, or `auto`.
        memory_limit: bytes that a rank may use; by default the device's memory.
        split: the layers of each stage where they are given; by default they are searched for.
        stages_per_rank: how many stages each rank holds; by default as many as the schedule asks for.
        recompute: what blocks do again in their backward: nothing, or their whole forward.

    Raises:
        InputError: more stages than layers, an unknown schedule, stages that it cannot run, or an unknown way to
            recompute.
        ImpossibleError: no split stays under the memory limit; the closest is named, and whether recomputing would do.
    """
    began = time.perf_counter()
    check_request(model, cluster, batch, schedule, stages_per_rank)
    limit = memory_limit if memory_limit is not None else cluster.device.memory_bytes
    recompute = check_recompute(recompute)
    problem = Problem(
        model=model.under(recompute),
        costs=costs.under(recompute),
        microbatches=batch.microbatches,
        schedule=schedule,
        stage_rank=place_stages(schedule, cluster.devices, len(model.layers), stages_per_rank),
        limit=limit,
        at_once=cluster.at_once,
    )
    try:
        solution = solve(problem, split)
    except ImpossibleError as error:
        if recompute == "full" or model.under("full") == model:
            raise
        full = replace(problem, model=model.under("full"), costs=costs.under("full"))
        raise ImpossibleError(f"{error}; {_if_recomputed(full, split)}") from None
    return _assemble(model, cluster, batch, problem, recompute, solution, began)


def _if_recomputed(problem: Problem, split: Split | None) -> str:
    """What recomputing would make of a problem that is not possible without."""
    try:
        peak = max(rank.peak_bytes for rank in solve(problem, split).timeline.ranks)
    except ImpossibleError:
        return "--recompute full would not be enough"
    return f"--recompute full would fit, in {format_bytes(peak)}"


def _assemble(
    model: Model,
    cluster: Cluster,
    batch: Batch,
    problem: Problem,
    recompute: Recompute,
    solution: Solution,
    began: float,
) -> Plan:
    """The plan that a solution makes."""
    costs, step_s = problem.costs, solution.timeline.step_s
    lower_bound = step_bound(costs, cluster.at_once, batch.microbatches)
    return Plan(
        model=model.name,
        fingerprint=model.fingerprint,
        cluster=cluster.name,
        threads=cluster.threads,
        at_once=cluster.at_once,
        axes=Axes(pp=cluster.devices),
        schedule=problem.schedule,
        order=None if solution.order is None else order_text(solution.order),
        posting=solution.posting,
        recompute=recompute,
        micro_batch_size=batch.micro_batch_size,
        microbatches=batch.microbatches,
        seq_length=batch.seq_length,
        memory_limit=int(problem.limit),
        layers=_layer_plans(model.under(recompute), costs),
        stage_forward_s=costs.stage_forward_s,
        stage_backward_s=costs.stage_backward_s,
        stages=stage_plans(solution, problem),
        ranks=rank_plans(solution, problem),
        link=costs.link,
        reduce_s=costs.reduce_s,
        peak_flops=costs.peak_flops,
        predicted=predict(
            solution.timeline,
            mfu=model.flops * batch.microbatches / (cluster.at_once * step_s * costs.peak_flops),
            tokens=batch.tokens,
        ),
        bound=Bound(lower_bound, step_s / lower_bound - 1),
        search=Search(solution.considered, time.perf_counter() - began),
        costs=costs.origin,
        notes=advice(model, costs, cluster.devices),
        device=cluster.device.name,
    )


def check_request(
    model: Model, cluster: Cluster, batch: Batch, schedule: str, stages_per_rank: int | None = None
) -> None:
    """Refuse what no costs can mend, so that a caller need not measure first.

    Raises:
        InputError: more stages than layers, an unknown schedule, stages that it cannot run, or tied embeddings on
            different stages.
    """
    layers, devices = len(model.layers), cluster.devices
    if devices > layers:
        raise InputError(
            f"{devices} stages need at least {devices} layers; {model.name} has {layers}: "
            f"{layers} processes or fewer would do"
        )
    check_size(len(place_stages(schedule, devices, layers, stages_per_rank)), batch.microbatches)
    if model.tied_embeddings and devices > 1:
        raise InputError(
            f"{model.name} ties its embedding to its head, which would live on different stages; "
            "one process, or tie_word_embeddings = false in its config, would work"
        )
    if batch.microbatches < 1:
        raise InputError(f"a step of {batch.microbatches} microbatches trains nothing; 1 would be the least")


def stage_plans(solution: Solution, problem: Problem) -> tuple[StagePlan, ...]:
    """Each stage of a solution."""
    memory = MemoryModel(problem.model)
    costs = stage_costs(problem.costs, solution.split)
    return tuple(
        StagePlan(rank, layers, cost, memory.stage(layers))
        for rank, layers, cost in zip(problem.stage_rank, solution.split, costs, strict=True)
    )


def rank_plans(solution: Solution, problem: Problem) -> tuple[RankPlan, ...]:
    """Each rank of a solution."""
    costs = rank_costs(problem.costs, solution.split, problem.stage_rank)
    return tuple(
        RankPlan(rank, stages_of(problem.stage_rank, rank), own.busy_s, own.peak_bytes, cost)
        for rank, (own, cost) in enumerate(zip(solution.timeline.ranks, costs, strict=True))
    )


def predict(timeline: Timeline, mfu: float, tokens: int) -> Prediction:
    """What a step is predicted to be."""
    return Prediction(
        step_s=timeline.step_s,
        idle_fraction=timeline.idle_fraction,
        imbalance=timeline.imbalance,
        mfu=mfu,
        tokens_per_s=tokens / timeline.step_s,
    )


def _layer_plans(model: Model, costs: Costs) -> tuple[LayerPlan, ...]:
    return tuple(
        LayerPlan(
            name=layer.name,
            cost=cost,
            parameter_bytes=layer.parameter_bytes,
            saved_bytes=layer.saved_bytes,
            pending_bytes=layer.pending_bytes,
            output_bytes=layer.output_bytes,
            forward_peak_bytes=layer.forward_peak_bytes,
            backward_peak_bytes=layer.backward_peak_bytes,
            shared_bytes=layer.shared_bytes,
            input_peak_bytes=layer.input_peak_bytes,
            first_backward_peak_bytes=layer.first_backward_peak_bytes,
            first_input_peak_bytes=layer.first_input_peak_bytes,
            kept_gradient_bytes=layer.kept_gradient_bytes,
            weight_bytes=layer.weight_bytes,
        )
        for layer, cost in zip(model.layers, costs.layers, strict=True)
    )
