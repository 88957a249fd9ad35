"""Model parallelism that works: even pipeline splits of Hugging Face models, planned, predicted and trained.

The Python API. Each function imports what it needs when it is called, so that planning stays quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from evenflow.cost import Costs, Profile
from evenflow.errors import (
    EvenflowError,
    FaultError,
    ImpossibleError,
    InputError,
    PeerLostError,
    ProgramError,
    StoppedError,
)
from evenflow.plan import Plan
from evenflow.program import Program
from evenflow.spec import (
    DEFAULT_DTYPE,
    Batch,
    Cluster,
    Device,
    Dtype,
    Layer,
    Machine,
    Model,
    Operator,
    RecomputeWish,
    check_dtype,
    parse_cluster,
)
from evenflow.timeline import Comparison, Event, Timeline, compare

if TYPE_CHECKING:
    from evenflow.execute import CheckResult
    from evenflow.search.layouts import Pins
    from evenflow.spec.architecture import Architecture
    from evenflow.train import Job, Progress, RunResult

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Cluster",
    "Comparison",
    "Costs",
    "Device",
    "EvenflowError",
    "Event",
    "FaultError",
    "ImpossibleError",
    "InputError",
    "Layer",
    "Machine",
    "Model",
    "Operator",
    "PeerLostError",
    "Plan",
    "Profile",
    "Program",
    "ProgramError",
    "StoppedError",
    "Timeline",
    "__version__",
    "check",
    "compare",
    "describe",
    "parse_cluster",
    "plan",
    "profile",
    "simulate",
    "train",
]


def describe(
    model: str | Path, micro_batch_size: int = 1, seq_length: int = 256, tp: int = 1, dtype: Dtype = DEFAULT_DTYPE
) -> Model:
    """Trace a model's layers: parameters, exact FLOPs and bytes of one microbatch, without allocating anything.

    Args:
        model: a Hugging Face directory, a config.json, or a hub id.
        micro_batch_size: sequences of a microbatch.
        seq_length: tokens of a sequence.
        tp: how many processes share every layer's tensors; figures are those of one of them.
        dtype: of weights and activations, `fp32` or `bf16`.

    Raises:
        InputError: there is no such model, or it cannot be cut into layers, or shared out.
    """
    from evenflow.models import describe_model, find_model

    return describe_model(find_model(str(model)), micro_batch_size, seq_length, tp, check_dtype(dtype))


def profile(
    model: str | Path,
    processes: int | None = None,
    micro_batch_size: int = 1,
    seq_length: int = 256,
    threads: int | None = None,
    tp: int = 1,
    dtype: Dtype = DEFAULT_DTYPE,
) -> Profile:
    """Time a model's layers on this machine, with `processes` processes busy at once.

    Args:
        model: a Hugging Face directory, a config.json, or a hub id.
        processes: by default min(cores, 8).
        micro_batch_size: sequences of a microbatch.
        seq_length: tokens of a sequence.
        threads: compute threads of each process; by default an equal slice of the cores.
        tp: how many processes share every layer's tensors.
        dtype: of weights and activations, `fp32` or `bf16`.

    Raises:
        InputError: there is no such model, or it cannot be cut into layers, or shared out.
    """
    from evenflow.measure import measure_profile
    from evenflow.models import describe_model, find_model
    from evenflow.spec.cluster import local_cluster

    source = find_model(str(model))
    described = describe_model(source, micro_batch_size, seq_length, tp, check_dtype(dtype))
    return measure_profile(source, described, local_cluster(processes, threads))


def plan(
    model: str | Path,
    cluster: str | Cluster = "local",
    global_batch_size: int = 16,
    seq_length: int = 256,
    micro_batch_size: int | None = None,
    profile: Profile | None = None,
    schedule: str | None = None,
    memory_limit: int | None = None,
    stages_per_rank: int | None = None,
    recompute: RecomputeWish | None = None,
    pp: int | None = None,
    tp: int | None = None,
    dp: int | None = None,
    zero: int | None = None,
    dtype: Dtype | None = None,
    cp: int | None = None,
    ep: int | None = None,
) -> Plan:
    """Cut a model over a cluster's devices.

    Args:
        model: a Hugging Face directory, a config.json, a hub id, or a preset such as `llama-2-7b`: of a preset, what is
            not given is searched, and `dtype` is bf16.
        cluster: `local`, a short form such as `8xA100-80GB`, a cluster file's path, or a value.
        global_batch_size: sequences of a step.
        seq_length: tokens of a sequence.
        micro_batch_size: by default as many as leave each rank four microbatches.
        profile: measured costs; without them they come from FLOPs. Of a preset, those that `evenflow rehearse` wrote.
        schedule: `1f1b` (default), another one's name, or `auto`.
        memory_limit: bytes that a rank may use; by default the device's memory.
        stages_per_rank: by default as many as the schedule asks for.
        recompute: what blocks run again in their backward: `none` (by default), `selective` (their attention), `full`,
            or with `auto` as little as fits the memory limit.
        pp: pipeline ranks; by default what the other axes leave of the devices.
        tp: processes that share the tensors of each stage.
        dp: data-parallel replicas.
        zero: 1 has replicas share out the optimizer's state (default 0).
        dtype: of weights and activations, `fp32` (default) or `bf16`.
        cp: processes that share every sequence; predicted for devices of the catalogue, and not run here.
        ep: processes that share the experts, among those that dp and cp make; likewise.

    Raises:
        InputError: something in the request is wrong.
        ImpossibleError: nothing fits; the closest is named.
    """
    from evenflow.plan import check_zero
    from evenflow.search.layouts.layout import Pins
    from evenflow.spec.presets import preset_of

    zero_stage = None if zero is None else check_zero(zero)
    pins = Pins(pp, tp, dp, cp, ep, stages_per_rank, schedule, micro_batch_size, zero_stage)
    batch = (global_batch_size, seq_length)
    preset = preset_of(str(model))
    if preset is None:
        return _plan_model(str(model), cluster, batch, pins, profile, recompute, memory_limit, dtype)
    return _plan_preset(preset, cluster, batch, pins, profile, recompute, memory_limit, dtype)


def _plan_model(
    model: str,
    cluster: str | Cluster,
    batch: tuple[int, int],
    pins: Pins,
    profile: Profile | None,
    recompute: RecomputeWish | None,
    memory_limit: int | None,
    dtype: Dtype | None,
) -> Plan:
    """A model that can be traced is planned from its layers; an axis that is not pinned follows from the others."""
    from evenflow.models import find_model
    from evenflow.plan import choose_axes
    from evenflow.train import choose_cluster, make_batch, plan_model

    if isinstance(cluster, str):
        where, axes = choose_cluster(cluster, pins.pp, pins.tp, pins.dp, cp=pins.cp, ep=pins.ep)
    else:
        where = cluster
        axes = choose_axes(cluster.devices, pins.pp, pins.tp, pins.dp, cp=pins.cp, ep=pins.ep, exactly=True)
    _, found, _ = plan_model(
        find_model(model),
        where,
        make_batch(batch[0], pins.micro_batch_size, batch[1], axes),
        pins.schedule,
        memory_limit,
        profile,
        pins.stages_per_rank,
        recompute,
        axes,
        pins.zero or 0,
        check_dtype(dtype or DEFAULT_DTYPE),
    )
    return found


def _plan_preset(
    preset: Architecture,
    cluster: str | Cluster,
    batch: tuple[int, int],
    pins: Pins,
    profile: Profile | None,
    recompute: RecomputeWish | None,
    memory_limit: int | None,
    dtype: Dtype | None,
) -> Plan:
    """A preset is planned from its dimensions: what is not pinned is searched."""
    from evenflow.files.cluster import read_cluster
    from evenflow.search.layouts import LayoutRequest, plan_layout

    devices = read_cluster(cluster) if isinstance(cluster, str) else cluster
    return plan_layout(
        LayoutRequest(
            preset, devices, *batch,
            pins=pins, recompute=recompute or "auto", memory_limit=memory_limit,
            dtype=None if dtype is None else check_dtype(dtype), profile=profile,
        )
    )  # fmt: skip


def simulate(plan: Plan, schedule: str | None = None) -> Timeline:
    """The timeline that a plan would have, under its own schedule or another.

    Raises:
        InputError: there is no such schedule, or it asks for more stages than there are layers.
        ImpossibleError: the other schedule does not keep under the plan's memory limit.
    """
    from evenflow.search import plan_timeline

    return plan_timeline(plan, schedule)


def train(job: Job, progress: Progress | None = None) -> RunResult:
    """Train a model split over processes of this host, or over torchrun's workers; see `evenflow.train.Job`.

    Raises:
        InputError: something in the job is wrong.
        ImpossibleError: nothing fits.
        FaultError: a rank failed or died; the others were ended.
        StoppedError: a signal stopped the run after it saved.
    """
    from evenflow.train import train as run

    return run(job, progress)


def check(model: str | Path) -> CheckResult:
    """Prove on a small copy of a model's architecture that its split equals the whole.

    Raises:
        InputError: it does not, and where.
    """
    from evenflow.execute import check_split
    from evenflow.models import find_model

    return check_split(find_model(str(model)).config)


class _Facade(ModuleType):
    """Keeps the API's functions where rooms have the same names: importing `evenflow.train` would bind it here."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and callable(self.__dict__.get(name))):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Facade
