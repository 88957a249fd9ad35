"""From a preset, a cluster and a batch to a plan: the search, then the plan of what it found, or why nothing fits."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from evenflow.cost.preset import PresetCosts, Shape
from evenflow.errors import ImpossibleError, InputError
from evenflow.plan import Plan, Search
from evenflow.program import AUTO
from evenflow.search.layouts.assemble import assemble
from evenflow.search.layouts.best_first import Searched, best_first
from evenflow.search.layouts.explain import ALTERNATIVES, notes
from evenflow.search.layouts.layout import FREE, Layout, Pins, Space
from evenflow.search.layouts.solve import Found, Kind, Solver
from evenflow.search.replay import reschedule
from evenflow.spec import Batch, Cluster
from evenflow.spec.architecture import Architecture
from evenflow.spec.trainers import OURS, Trainer, find_trainer
from evenflow.units import format_bytes

_CLOSEST = 24  # layouts that are tried for the closest where none fits
_TRIES = 4  # at a limit that is lowered by what a program held beyond what the search allowed for


@dataclass(frozen=True, slots=True)
class LayoutRequest:
    """What a plan is asked for.

    Attributes:
        architecture: what is trained.
        cluster: on what; every device is used.
        global_batch_size: sequences of a step.
        seq_length: tokens of a sequence.
        trainer: who runs it.
        pins: axes that are fixed.
        recompute: what blocks run again; `auto` is as little as fits.
        memory_limit: bytes that a device's tensors may take; by default what its memory leaves.
    """

    architecture: Architecture
    cluster: Cluster
    global_batch_size: int
    seq_length: int
    trainer: str = OURS
    pins: Pins = FREE
    recompute: str = "auto"
    memory_limit: int | None = None

    @property
    def limit(self) -> int:
        """Bytes that a device's tensors may take."""
        usable = max(group.accelerator.usable_bytes for group in self.cluster.groups)
        return self.memory_limit if self.memory_limit is not None else usable

    def space(self, trainer: Trainer) -> Space:
        """The layouts that are asked for; an order made for costs is looked for in what a named one found."""
        pins = replace(self.pins, schedule=None) if self.pins.schedule == AUTO else self.pins
        node = min(group.node_devices for group in self.cluster.groups)
        return Space(
            self.architecture, self.cluster.devices, node, self.global_batch_size, self.seq_length,
            trainer, pins,
        )  # fmt: skip


def plan_layout(request: LayoutRequest) -> Plan:
    """The plan with the shortest step.

    Raises:
        InputError: a trainer or device that is not known, fixed axes that no layout has, a batch that does not divide.
        ImpossibleError: no layout fits; the closest is named.
    """
    began = time.perf_counter()
    trainer = find_trainer(request.trainer)
    if not request.cluster.groups:
        raise InputError(
            f"{request.architecture.name} is known by its dimensions alone, and is planned for devices of the "
            "catalogue; --cluster 128x8xA100-80GB would do, or a model directory for this machine"
        )
    if request.pins.schedule == AUTO and trainer.name != OURS:
        raise InputError(f"{trainer.name} does not run orders that are made for a plan; --schedule 1f1b would do")
    space = request.space(trainer)
    layouts = space.layouts()
    fastest = max(request.cluster.groups, key=lambda group: group.accelerator.half_flops)
    costs = PresetCosts(request.architecture, fastest.accelerator, request.seq_length, trainer)
    kinds = _kinds(request, costs)
    solver = Solver(costs, kinds, request.recompute)
    layouts = [layout for layout in layouts if solver.has_ranks(layout)]
    if not layouts:
        counts = ", ".join(str(kind.devices) for kind in kinds)
        raise InputError(f"no layout has every pipeline rank on devices of one kind, of which there are {counts}")
    for _ in range(_TRIES):
        searched = best_first(layouts, costs, solver, runners_up=ALTERNATIVES)
        if searched.best is None:
            raise ImpossibleError(_closest_text(request, searched, layouts, costs, solver))
        plan = _plan(request, searched, searched.best, costs)
        limits = plan.memory_limits or (plan.memory_limit,) * len(plan.ranks)
        over = max(rank.peak_bytes - limit for rank, limit in zip(plan.ranks, limits, strict=True))
        if over <= 0:
            plan = replace(plan, notes=notes(plan, searched, solver, space))
            break
        solver = solver.with_more(-over)
    plan = replace(plan, search=Search(len(layouts), time.perf_counter() - began))
    return reschedule(plan, AUTO) if request.pins.schedule == AUTO else plan


def _kinds(request: LayoutRequest, costs: PresetCosts) -> list[Kind]:
    """The cluster's kinds of devices: how fast each computes a block beside the one that costs are of."""
    shape = Shape()
    block = slice(1, -1)
    own = costs.figures(shape)
    seconds = float((own.forward_s + own.input_s[0] + own.weight_s)[block].sum())
    found = []
    for group in request.cluster.groups:
        speed = 1.0
        if group.accelerator != costs.device:
            other = PresetCosts(request.architecture, group.accelerator, request.seq_length, costs.trainer).figures(
                shape
            )
            speed = seconds / float((other.forward_s + other.input_s[0] + other.weight_s)[block].sum())
        usable = group.accelerator.usable_bytes
        cap = usable if request.memory_limit is None else min(usable, request.memory_limit)
        if len(request.cluster.groups) == 1:
            cap = request.limit
        found.append(Kind(group.devices, speed, float(cap)))
    return found


def _plan(request: LayoutRequest, searched: Searched, best: Found, costs: PresetCosts) -> Plan:
    layout = best.layout
    batch = Batch(request.global_batch_size, layout.micro_batch_size, request.seq_length, layout.dp)
    return assemble(best, costs, request.cluster, batch, request.limit, searched.bound_s, Search(1, 0.0), ())


def _closest_text(
    request: LayoutRequest, searched: Searched, layouts: list[Layout], costs: PresetCosts, solver: Solver
) -> str:
    """The layout that lacks least memory, and how much."""

    def need(layout: Layout) -> float:
        figures = costs.figures(layout.shape)
        step = costs.step_figures(layout.shape, layout.dp, layout.zero)
        held = figures.saved_bytes[2].sum() + figures.passing_bytes[2].max() * layout.pp
        return float((step.state_bytes.sum() + held) / layout.pp)

    tried = [solver.solve(layout) for layout in sorted(layouts, key=need)[:_CLOSEST]]
    closest = min([*tried, *([searched.closest] if searched.closest else [])], key=lambda own: own.peak_bytes)
    peaks = np.array(closest.rank_peaks)
    more = "" if request.recompute in ("auto", "full") else "; --recompute auto needs less"
    return (
        f"no plan fits: of {len(layouts)} layouts the closest ({closest.layout.text()}) has rank {int(peaks.argmax())} "
        f"needing {format_bytes(peaks.max())} of {format_bytes(request.limit)}, "
        f"{format_bytes(peaks.max() - request.limit)} more than there is; more devices, fewer fixed axes or a "
        f"memory limit of {format_bytes(peaks.max() * 1.005)} would do{more}"
    )
