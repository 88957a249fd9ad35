"""The planner: cuts a model over a pipeline so that its simulated step is as short as can be found."""

from __future__ import annotations

import time
from dataclasses import replace

from evenflow.cost import Costs, state_with_experts
from evenflow.errors import InputError
from evenflow.plan import (
    Axes,
    Bound,
    LayerPlan,
    Plan,
    Prediction,
    RankPlan,
    Search,
    StagePlan,
    Zero,
    check_zero,
    step_bound,
)
from evenflow.program import check_size, order_text, stages_of
from evenflow.search.advice import advice
from evenflow.search.problem import Problem, Split, place_stages
from evenflow.search.recomputing import solve_recomputing
from evenflow.search.solve import Solution
from evenflow.spec import Batch, Cluster, Model, Recompute, RecomputeWish, check_recompute
from evenflow.timeline import Timeline


def make_plan(
    model: Model,
    cluster: Cluster,
    batch: Batch,
    costs: Costs,
    schedule: str = "1f1b",
    memory_limit: int | None = None,
    split: Split | None = None,
    stages_per_rank: int | None = None,
    recompute: RecomputeWish = "none",
    axes: Axes | None = None,
    zero: Zero = 0,
) -> Plan:
    """Plan `model` on all devices of `cluster`.

    Args:
        model: traced at the batch's microbatch shape, and for tp, cp and ep of the axes.
        cluster: the devices; every one is a process.
        batch: a step's work.
        costs: seconds of each layer.
        schedule: the schedule's name, or `auto`.
        memory_limit: bytes that a rank may use; by default the device's memory.
        split: the layers of each stage where they are given; by default they are searched for.
        stages_per_rank: how many stages each rank holds; by default as many as the schedule asks for.
        recompute: what blocks run again in their backward: nothing, their attention, their whole forward, or with
            `auto` as little as fits.
        axes: the devices on each axis; by default every one is a pipeline rank.
        zero: what replicas share out: nothing, or with 1 the optimizer's state.

    Raises:
        InputError: more stages than layers, an unknown schedule, stages that it cannot run, an unknown way to
            recompute, no attention to recompute, an unknown stage of ZeRO, axes of another number of devices, or a
            batch for other replicas.
        ImpossibleError: no split stays under the memory limit; the closest is named, and whether recomputing would do.
    """
    began = time.perf_counter()
    axes = axes or Axes(pp=cluster.devices)
    check_request(model, cluster, batch, schedule, stages_per_rank, axes)
    if axes.ep > 1 and zero:  # of experts there are fewer replicas
        states = [state_with_experts(layer, axes.copies, axes.ep) for layer in model.layers]
        layers = [replace(layer, state_bytes=own) for layer, own in zip(model.layers, states, strict=True)]
        model = replace(model, layers=tuple(layers))
    limit = memory_limit if memory_limit is not None else cluster.device.memory_bytes
    wish = check_recompute(recompute)
    problem = Problem(
        model=model,
        costs=replace(_over(costs, axes, check_zero(zero)), speeds=_rank_speeds(costs.speeds, axes)),
        microbatches=batch.microbatches,
        schedule=schedule,
        stage_rank=place_stages(schedule, axes.pp, len(model.layers), stages_per_rank, axes.tp),
        limit=limit,
        at_once=max(cluster.at_once * axes.pp // axes.processes, 1),  # of the ranks of one pipeline
    )
    modes, problem, solution = solve_recomputing(problem, model, wish, split)
    return _assemble(model, cluster, batch, problem, axes, modes, solution, began)


def _assemble(
    model: Model,
    cluster: Cluster,
    batch: Batch,
    problem: Problem,
    axes: Axes,
    recompute: tuple[Recompute, ...],
    solution: Solution,
    began: float,
) -> Plan:
    """The plan that a solution makes."""
    costs, step_s = problem.costs, solution.timeline.step_s
    lower_bound = step_bound(costs, problem.at_once, batch.microbatches)
    return Plan(
        model=model.name,
        fingerprint=model.fingerprint,
        cluster=cluster.name,
        threads=cluster.threads,
        at_once=problem.at_once,
        axes=axes,
        schedule=problem.schedule,
        order=None if solution.order is None else order_text(solution.order),
        posting=solution.posting,
        micro_batch_size=batch.micro_batch_size,
        microbatches=batch.microbatches,
        seq_length=batch.seq_length,
        memory_limit=int(problem.limit),
        layers=layer_plans(model.under(recompute), costs, recompute),
        stage_forward_s=costs.stage_forward_s,
        stage_backward_s=costs.stage_backward_s,
        stages=stage_plans(solution.split, problem),
        ranks=rank_plans(solution, problem),
        link=costs.link,
        reduce_s=costs.reduce_s,
        peak_flops=costs.peak_flops,
        predicted=predict(
            solution.timeline,
            mfu=model.flops * batch.microbatches / (problem.at_once * axes.tp * axes.cp * step_s * costs.peak_flops),
            tokens=batch.tokens,
        ),
        bound=Bound(lower_bound, step_s / lower_bound - 1),
        search=Search(solution.considered, time.perf_counter() - began),
        costs=costs.origin,
        notes=advice(model, costs, axes.pp),
        device=cluster.device.name,
        zero=1 if costs.shares > 1 else 0,
        tied_bytes=model.tied_bytes,
        speeds=costs.speeds,
        dtype=model.dtype,
        process_bytes=costs.process_bytes,
        sum_link=costs.sum_link,
        network=costs.network,
    )


def _over(costs: Costs, axes: Axes, zero: Zero) -> Costs:
    """Costs over all replicas of a weight; those whose layers say what replicas exchange were made for them."""
    return costs if costs.reduces_by_layer else costs.over(axes.copies, axes.copies if zero else 1)


def _rank_speeds(speeds: tuple[float, ...] | None, axes: Axes) -> tuple[float, ...] | None:
    """A pipeline rank is as fast as the slowest of the processes that have its place."""
    if speeds is None:
        return None
    each = axes.processes // axes.pp
    return tuple(min(speeds[rank * each : (rank + 1) * each]) for rank in range(axes.pp))


def check_request(
    model: Model,
    cluster: Cluster,
    batch: Batch,
    schedule: str,
    stages_per_rank: int | None = None,
    axes: Axes | None = None,
) -> None:
    """Refuse what no costs can mend, so that a caller need not measure first.

    Raises:
        InputError: more stages than layers, an unknown schedule, stages that it cannot run, axes of another number of
            devices, or a batch for other replicas.
    """
    axes = axes or Axes(pp=cluster.devices)
    layers, ranks = len(model.layers), axes.pp
    if axes.processes != cluster.devices:
        sizes, names = f"{axes.pp} x {axes.dp} x {axes.tp}", "pp x dp x tp"
        if axes.cp > 1:
            sizes, names = f"{sizes} x {axes.cp}", f"{names} x cp"
        raise InputError(
            f"{sizes} ({names}) are {axes.processes} processes, and there are "
            f"{cluster.devices} devices; as many would do"
        )
    if ranks > 1 and model.crossing is None:
        raise InputError(
            f"{model.name} in {model.dtype} hands on hidden states of different types ({model.dtype} after the "
            "embedding, fp32 after blocks, say), and stages exchange those of one; --dtype fp32 or a single pipeline "
            "rank would do"
        )
    if model.tp != axes.tp:
        raise InputError(f"{model.name} is described for tp {model.tp}, and tp is {axes.tp}; the same would do")
    if (model.cp, model.ep) != (axes.cp, axes.ep):
        raise InputError(
            f"{model.name} is described for cp {model.cp} and ep {model.ep}, and they are {axes.cp} and {axes.ep}; the "
            "same would do"
        )
    if batch.replicas != axes.dp:
        raise InputError(f"the batch is for {batch.replicas} replicas and dp is {axes.dp}; the same would do")
    if ranks > layers:
        raise InputError(
            f"{ranks} stages need at least {ranks} layers; {model.name} has {layers}: "
            f"{layers} processes or fewer would do"
        )
    check_size(len(place_stages(schedule, ranks, layers, stages_per_rank, axes.tp)), batch.microbatches)
    if batch.microbatches < 1:
        raise InputError(f"a step of {batch.microbatches} microbatches trains nothing; 1 would be the least")


def stage_plans(split: Split, problem: Problem) -> tuple[StagePlan, ...]:
    """Each stage of a split."""
    hardware = problem.hardware(split)
    columns = zip(problem.stage_rank, split, hardware.stages, hardware.memory, strict=True)
    return tuple(StagePlan(*column) for column in columns)


def rank_plans(solution: Solution, problem: Problem) -> tuple[RankPlan, ...]:
    """Each rank of a solution."""
    costs = problem.hardware(solution.split).ranks
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


def layer_plans(model: Model, costs: Costs, recompute: tuple[Recompute, ...]) -> tuple[LayerPlan, ...]:
    """Each layer, with the figures that it has under its way to recompute."""
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
            recompute=own,
            master_bytes=layer.master_bytes,
            freed_input_bytes=layer.freed_input_bytes,
            state_bytes=layer.state_bytes,
            largest_gradient_bytes=layer.largest_gradient_bytes,
        )
        for layer, cost, own in zip(model.layers, costs.layers, recompute, strict=True)
    )
