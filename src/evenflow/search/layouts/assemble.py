"""A solved layout as a plan: its program played where it is small, its closed figures where a program would be huge."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evenflow.cost.preset import PresetCosts
from evenflow.cost.preset_model import preset_costs, preset_model
from evenflow.plan import Bound, Plan, Posting, Prediction, RankPlan, Search
from evenflow.program import SCHEDULES, Order, compute_order, order_text, stages_of
from evenflow.search.hardware import plan_work
from evenflow.search.layouts.bounds import norm_seconds
from evenflow.search.layouts.solve import Found
from evenflow.search.planner import layer_plans, predict, rank_plans, stage_plans
from evenflow.search.posting import posted_program
from evenflow.search.problem import Problem
from evenflow.search.solve import Solution
from evenflow.simulate import simulate
from evenflow.spec import Batch, Cluster, Dtype, Model, Recompute

PRESET_DTYPE: Dtype = "bf16"  # what `cost.preset` counts, with masters and moments in fp32
_PLAYED = 4096  # stages x microbatches: a program as large takes most of a second


def assemble(
    found: Found,
    costs: PresetCosts,
    cluster: Cluster,
    batch: Batch,
    limit: int,
    bound_s: float,
    search: Search,
    notes: tuple[str, ...],
) -> Plan:
    """The plan of a solved layout."""
    layout = found.layout
    wanted: tuple[Recompute, ...] = found.modes  # type: ignore[assignment]  # words of `stages.WAYS`
    model = preset_model(costs, layout.shape, layout.dp, layout.zero)
    modes = model.recomputing(wanted)
    problem = _problem(found, costs, model, modes, limit)
    played = _play(found, problem, batch)
    own, step_s = problem.costs, played.predicted.step_s
    mfu = model.flops * layout.microbatches / (layout.pp * layout.tp * layout.cp * step_s * own.peak_flops)
    bound = min(bound_s, step_s)
    return Plan(
        model=model.name,
        fingerprint=model.fingerprint,
        cluster=cluster.name,
        threads=1,
        at_once=layout.pp,
        axes=layout.axes,
        schedule=layout.schedule,
        order=None if played.order is None else order_text(played.order),
        posting=played.posting,
        micro_batch_size=layout.micro_batch_size,
        microbatches=layout.microbatches,
        seq_length=batch.seq_length,
        memory_limit=limit,
        layers=layer_plans(model.under(modes), own, modes),
        stage_forward_s=0.0,
        stage_backward_s=0.0,
        stages=stage_plans(found.split, problem),
        ranks=played.ranks,
        link=own.link,
        network=own.network,
        reduce_s=own.reduce_s,
        peak_flops=own.peak_flops,
        predicted=replace(played.predicted, mfu=mfu),
        bound=Bound(bound, step_s / bound - 1),
        search=search,
        costs=own.origin,
        notes=notes,
        device=cluster.device.name,
        zero=1 if layout.zero else 0,
        tied_bytes=model.tied_bytes,
        dtype=PRESET_DTYPE,
        trainer=costs.trainer.name,
        source=model.name,
        speeds=found.speeds,
        memory_limits=found.limits,
    )


def _problem(found: Found, costs: PresetCosts, model: Model, modes: tuple[Recompute, ...], limit: int) -> Problem:
    """What a planner of traced models would have been asked for."""
    layout = found.layout
    own = preset_costs(costs, layout.shape, layout.pp, layout.dp, layout.zero, norm_seconds(costs, layout))
    return Problem(
        model=model.under(modes),
        costs=replace(own, speeds=found.speeds).under(modes),
        microbatches=layout.microbatches,
        schedule=layout.schedule,
        stage_rank=layout.stage_rank,
        limit=limit,
        at_once=layout.pp,
    )


@dataclass(frozen=True, slots=True)
class _Played:
    order: Order | None
    posting: Posting
    ranks: tuple[RankPlan, ...]
    predicted: Prediction


def _play(found: Found, problem: Problem, batch: Batch) -> _Played:
    """The step of a layout as its program has it, or where that is large as the search has it."""
    layout = found.layout
    order = None
    if SCHEDULES[layout.schedule].by_costs:
        order = compute_order(layout.schedule, problem.stage_rank, problem.microbatches)
    if layout.stages * layout.microbatches > _PLAYED:
        return _Played(order, "costs", *_closed(found, problem, batch))
    hardware = problem.hardware(found.split)
    work = plan_work(problem.stage_rank, problem.microbatches, hardware)
    program, posting = posted_program(
        order or compute_order(layout.schedule, problem.stage_rank, problem.microbatches),
        work,
        hardware,
        found.limits or [problem.limit] * problem.ranks,
        problem.reduces,
        problem.tied,
    )
    timeline = simulate(program, hardware)
    solution = Solution(found.split, program, order, posting, timeline, 1)
    return _Played(order, posting, rank_plans(solution, problem), predict(timeline, 0.0, batch.tokens))


def _closed(found: Found, problem: Problem, batch: Batch) -> tuple[tuple[RankPlan, ...], Prediction]:
    """Ranks and prediction from the search's own figures."""
    hardware, layout = problem.hardware(found.split), found.layout
    busy = [0.0] * layout.pp
    for rank, cost in zip(problem.stage_rank, hardware.own_stages(problem.stage_rank), strict=True):
        halves = SCHEDULES[layout.schedule].halves
        backward = cost.input_s + cost.weight_s if halves else cost.backward_s
        busy[rank] += layout.microbatches * (cost.forward_s + backward)
    own_ranks = hardware.own_ranks()
    spent = sum(busy) + sum(cost.norm_s + cost.optimizer_s for cost in own_ranks)
    step_s = found.step_s + sum(hardware.reduce_tied_s or ())
    ranks = tuple(
        RankPlan(rank, stages_of(problem.stage_rank, rank), seconds, int(peak), cost)
        for rank, (seconds, peak, cost) in enumerate(zip(busy, found.rank_peaks, own_ranks, strict=True))
    )
    return ranks, Prediction(
        step_s=step_s,
        idle_fraction=max(1 - spent / (layout.pp * step_s), 0.0),
        imbalance=max(busy) / (sum(busy) / len(busy)),
        mfu=0.0,
        tokens_per_s=batch.tokens / step_s,
    )
