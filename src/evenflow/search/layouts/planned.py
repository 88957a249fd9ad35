"""From a preset, a cluster and a batch to a plan: the search, then the plan of what it found, or why nothing fits."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from evenflow.cost import Profile
from evenflow.cost.measured_preset import MeasuredPreset
from evenflow.cost.preset import PresetCosts, Shape
from evenflow.errors import ImpossibleError, InputError
from evenflow.plan import Plan, Search
from evenflow.program import AUTO, tp_misfit
from evenflow.search.layouts.assemble import PRESET_DTYPE, assemble
from evenflow.search.layouts.best_first import best_first
from evenflow.search.layouts.closest import closest_of, closest_text
from evenflow.search.layouts.explain import ALTERNATIVES, notes
from evenflow.search.layouts.layout import FREE, Pins, Space
from evenflow.search.layouts.profiled import MEASURED_AXES, check_profile, profile_notes, profiled_pins
from evenflow.search.layouts.solve import Found, Kind, Solver
from evenflow.search.replay import most_over, reschedule
from evenflow.spec import Batch, Cluster, Dtype
from evenflow.spec.accelerators import Accelerator
from evenflow.spec.architecture import Architecture
from evenflow.spec.cluster import check_memory_limit
from evenflow.spec.trainers import OURS, Trainer, find_trainer
from evenflow.units import format_bytes

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
        dtype: of weights and activations, which for presets is bf16; None says nothing.
        profile: what its layers took when ranks were rehearsed; only layouts of that shape are searched then.
    """

    architecture: Architecture
    cluster: Cluster
    global_batch_size: int
    seq_length: int
    trainer: str = OURS
    pins: Pins = FREE
    recompute: str = "auto"
    memory_limit: int | None = None
    dtype: Dtype | None = None
    profile: Profile | None = None

    @property
    def limit(self) -> int:
        """Bytes that a device's tensors may take."""
        return self.memory_limit if self.memory_limit is not None else self.usable

    @property
    def usable(self) -> int:
        """The same without a limit of the user's."""
        return max(group.accelerator.usable_bytes for group in self.cluster.groups)

    def space(self, trainer: Trainer) -> Space:
        """The layouts that are asked for; an order made for costs is looked for in what a named one found."""
        pins = replace(self.pins, schedule=None, tp=1) if self.pins.schedule == AUTO else self.pins
        node = min(group.node_devices for group in self.cluster.groups)
        return Space(
            self.architecture, self.cluster.devices, node, self.global_batch_size, self.seq_length,
            trainer, pins,
        )  # fmt: skip


def plan_layout(request: LayoutRequest) -> Plan:
    """The plan with the shortest step.

    Raises:
        InputError: a trainer or device that is not known, fixed axes that no layout has, a batch that does not divide,
            a profile of something else.
        ImpossibleError: no layout fits; the closest is named.
    """
    began = time.perf_counter()
    trainer = find_trainer(request.trainer)
    if not request.cluster.groups:
        raise InputError(
            f"{request.architecture.name} is known by its dimensions alone, and is planned for devices of the "
            "catalogue; --cluster 128x8xA100-80GB would do, or a model directory for this machine"
        )
    asked, request = request.pins, _as_measured(request, trainer)
    _check(request, trainer)
    space = request.space(trainer)
    layouts = space.layouts()
    costs, kinds = _kinds(request, trainer)
    solver = Solver(costs, kinds, request.recompute)
    layouts = [layout for layout in layouts if solver.has_ranks(layout)]
    if not layouts:
        counts = ", ".join(str(kind.devices) for kind in kinds)
        raise InputError(f"no layout has every pipeline rank on devices of one kind, of which there are {counts}")
    bound_s, full, over = 0.0, solver, 0
    for _ in range(_TRIES):
        searched = best_first(layouts, costs, solver, runners_up=ALTERNATIVES)
        if searched.best is None:
            searched = closest_of(searched, layouts, solver)
        # Later tries search less memory than there is: what holds of that is no bound of the whole.
        bound_s = bound_s or searched.bound_s
        if searched.best is None:
            raise ImpossibleError(closest_text(searched, full, _most_bytes(request), request.recompute))
        plan = _plan(request, searched.best, bound_s, costs)
        over = most_over(plan)
        if over <= 0:
            break
        solver = solver.with_more(-over)
    else:
        raise ImpossibleError(
            f"the program of the best of {len(layouts)} layouts holds {format_bytes(over)} more on a rank than it may, "
            f"and so did those of {_TRIES - 1} before it, each planned for less; a memory limit of "
            f"{format_bytes(max(kind.cap for kind in kinds) - 2 * over)}, or more fixed axes, would do"
        )
    if request.pins.schedule == AUTO:
        plan = reschedule(plan, AUTO)
    kept = MEASURED_AXES if request.profile is not None else ()
    own_pins = [name for name in space.pins.given() if name in asked.given() and name not in kept]
    said = (*profile_notes(request.profile), *notes(plan, searched, solver, space, own_pins))
    return replace(plan, search=Search(len(layouts), time.perf_counter() - began), notes=said)


def _as_measured(request: LayoutRequest, trainer: Trainer) -> LayoutRequest:
    """The request, kept to the axes that its profile is for, if it has one."""
    if request.profile is None:
        return request
    check_profile(request.profile, request.architecture, request.cluster, request.seq_length, trainer)
    return replace(request, pins=profiled_pins(request.profile, request.pins))


def _most_bytes(request: LayoutRequest) -> float:
    """All the memory of the largest device."""
    return max(group.accelerator.memory_bytes for group in request.cluster.groups)


def _check(request: LayoutRequest, trainer: Trainer) -> None:
    """Refuse what the trainer does not do, and a limit above what any device has."""
    if request.pins.schedule == AUTO and trainer.name != OURS:
        raise InputError(f"{trainer.name} does not run orders that are made for a plan; --schedule 1f1b would do")
    if request.pins.schedule == AUTO and (reason := tp_misfit(AUTO, request.pins.tp or 1)):
        raise InputError(f"{reason}, or --tp 1")
    if request.dtype not in (None, PRESET_DTYPE):
        raise InputError(
            f"--dtype {request.dtype}: presets are planned in {PRESET_DTYPE}, with masters and moments in fp32; "
            f"{PRESET_DTYPE} would do"
        )
    if request.recompute == "selective" and not trainer.has_selective:
        raise InputError(f"{trainer.name} does not recompute blocks in part; --recompute auto, full or none would do")
    check_memory_limit(
        request.memory_limit, _most_bytes(request), request.usable, f"the largest device of {request.cluster.name}"
    )


def _kinds(request: LayoutRequest, trainer: Trainer) -> tuple[PresetCosts, list[Kind]]:
    """Costs on the devices that compute a block the fastest, and the cluster's kinds of devices beside those."""
    every = [_costs(request, group.accelerator, trainer) for group in request.cluster.groups]
    seconds = [_block_s(own) for own in every]
    fastest = min(range(len(every)), key=seconds.__getitem__)
    found = []
    for group, taken in zip(request.cluster.groups, seconds, strict=True):
        usable = group.accelerator.usable_bytes
        cap = usable if request.memory_limit is None else min(usable, request.memory_limit)
        if len(request.cluster.groups) == 1:
            cap = request.limit
        found.append(Kind(group.devices, seconds[fastest] / taken, float(cap)))
    return every[fastest], found


def _costs(request: LayoutRequest, device: Accelerator, trainer: Trainer) -> PresetCosts:
    if request.profile is not None:
        return MeasuredPreset(request.architecture, device, request.seq_length, trainer, request.profile)
    return PresetCosts(request.architecture, device, request.seq_length, trainer)


def _block_s(costs: PresetCosts) -> float:
    """Seconds of all blocks for one sequence on one device."""
    own = costs.figures(Shape())
    return float((own.forward_s + own.input_s[0] + own.weight_s)[1:-1].sum())


def _plan(request: LayoutRequest, best: Found, bound_s: float, costs: PresetCosts) -> Plan:
    layout = best.layout
    batch = Batch(request.global_batch_size, layout.micro_batch_size, request.seq_length, layout.dp)
    return assemble(best, costs, request.cluster, batch, request.limit, bound_s, Search(1, 0.0), ())
