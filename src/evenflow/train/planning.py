"""From a model's name to a plan: what `plan`, `profile` and `train` share."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from evenflow.cost import Costs, Profile, analytic_costs
from evenflow.errors import ImpossibleError, InputError
from evenflow.files import load_plan
from evenflow.files.cluster import read_cluster
from evenflow.models import ModelSource, describe_model
from evenflow.plan import Axes, Plan, Zero, choose_axes
from evenflow.program import tp_misfit
from evenflow.search import make_plan
from evenflow.spec import DEFAULT_DTYPE, Batch, Cluster, Dtype, Model, RecomputeWish, this_machine
from evenflow.spec.batch import default_micro_batch_size
from evenflow.spec.cluster import CPU, check_memory_limit, local_cluster
from evenflow.spec.trainers import OURS
from evenflow.train.job import Job
from evenflow.units import format_bytes

DEFAULT_SCHEDULE = "1f1b"
DEFAULT_RECOMPUTE: RecomputeWish = "none"
_MEMORY = re.compile(r"\d+gb")


def choose_cluster(
    text: str,
    pp: int | None,
    tp: int | None,
    dp: int | None,
    threads: int | None = None,
    cp: int | None = None,
    ep: int | None = None,
) -> tuple[Cluster, Axes]:
    """The devices that a plan is for, and the axes over them; on this machine as many as the axes ask for.

    Raises:
        InputError: there is no such cluster, it does not have the devices, they are of several kinds, or of this
            machine and meant to share sequences or experts.
    """
    whole = read_cluster(text, None, threads)
    if len({group.accelerator for group in whole.groups}) > 1:
        kinds = ", ".join(f"{group.devices} {group.accelerator.name}" for group in whole.groups)
        raise InputError(
            f"{text} has devices of several kinds ({kinds}), by name, memory or links, over which presets are planned, "
            "such as llama-2-7b; a file with nodes of one kind would do"
        )
    for name, value in (("cp", cp), ("ep", ep)):
        if (value or 1) > 1 and whole.is_local:
            raise InputError(
                f"--{name} {value} is planned for devices of the catalogue, such as --cluster 8xA100-80GB, and this "
                f"machine's ranks have no {name}; without --{name} this would work"
            )
    others = (tp or 1) * (dp or 1) * (cp or 1)
    here = (pp or max(whole.devices // others, 1)) * others if whole.is_local else whole.devices
    axes = choose_axes(here, pp, tp, dp, cp=cp, ep=ep)
    return read_cluster(text, axes.processes, threads), axes


def make_batch(global_batch_size: int, micro_batch_size: int | None, seq_length: int, axes: Axes) -> Batch:
    """The batch, its microbatch chosen where it is not given."""
    if global_batch_size < 1:
        raise InputError(f"--global-batch-size {global_batch_size} trains nothing; 1 would be the least")
    return Batch(
        global_batch_size,
        micro_batch_size or default_micro_batch_size(max(global_batch_size // axes.dp, 1), axes.pp),
        seq_length,
        axes.dp,
    )


def plan_model(
    source: ModelSource,
    cluster: Cluster,
    batch: Batch,
    schedule: str | None = None,
    memory_limit: int | None = None,
    profile: Profile | None = None,
    stages_per_rank: int | None = None,
    recompute: RecomputeWish | None = None,
    axes: Axes | None = None,
    zero: Zero = 0,
    dtype: Dtype | None = None,
) -> tuple[Model, Plan, Costs]:
    """Describe the model and plan it: from a profile where there is one, else from FLOPs.

    Raises:
        InputError: the profile is for something else, or the memory limit more than there is.
        ImpossibleError: nothing fits.
    """
    check_limit(memory_limit, cluster)
    over = axes or Axes()
    model = describe_model(
        source, batch.micro_batch_size, batch.seq_length, over.tp, dtype or DEFAULT_DTYPE, over.cp, over.ep
    )
    if profile is not None:
        profile.check_fits(model, cluster)
    costs = profile.costs() if profile is not None else analytic_costs(model, cluster, over.dp, zero)
    plan = make_plan(
        model,
        cluster,
        batch,
        costs,
        DEFAULT_SCHEDULE if schedule is None else schedule,
        memory_limit,
        stages_per_rank=stages_per_rank,
        recompute=recompute or DEFAULT_RECOMPUTE,
        axes=axes,
        zero=zero,
    )
    said = (*_rehearsed_elsewhere(profile, cluster), *_not_run(over))
    return model, replace(plan, source=source.place, notes=(*plan.notes, *said)), costs


def _rehearsed_elsewhere(profile: Profile | None, cluster: Cluster) -> tuple[str, ...]:
    """A line where a plan's ranks were rehearsed on another device than its own."""
    own = profile.rehearsal if profile is not None else None
    if own is None or own.ran_on == cluster.device.name:
        return ()
    return (f"seconds of layers and updates are those of ranks rehearsed on {own.ran_on}, not on {own.device}",)


def _not_run(axes: Axes) -> tuple[str, ...]:
    """A line where our own ranks do not do what a plan says."""
    found = [f"{name} {size}" for name in ("cp", "ep") if (size := getattr(axes, name)) > 1]
    return (f"{' and '.join(found)}: predicted, and not run by `evenflow train`",) if found else ()


def check_limit(memory_limit: int | None, cluster: Cluster) -> None:
    """Refuse a limit above a device's memory, or, for processes that share a host's, above all of that."""
    most, whose = cluster.device.memory_bytes, f"a device of {cluster.name}"
    if cluster.is_local and cluster.device.is_gpu:
        most, whose = most * -(-cluster.devices // cluster.at_once), "a GPU of this machine, less what CUDA takes,"
    elif cluster.is_local:
        most, whose = this_machine().memory_bytes, "this machine"
    check_memory_limit(memory_limit, most, cluster.device.memory_bytes, whose)


def follow_plan(path: Path, source: ModelSource, started: int | None = None) -> tuple[Model, Plan]:
    """Read a plan to run and describe the model that it must be for.

    Args:
        path: the plan.
        source: the model.
        started: how many ranks torchrun started, on whatever hosts; None without it.

    Raises:
        InputError: the plan is for another model, shape or device, for other hosts, or for axes that are not run here.
    """
    plan = load_plan(path)
    if plan.trainer != OURS:
        raise InputError(
            f"{path} is a plan for {plan.trainer}; `evenflow export` writes it for that, train runs our own"
        )
    if plan.cluster != "local" and started is None:
        raise InputError(
            f"{path} is a plan for {plan.cluster}; train by itself runs on this machine, for --cluster local, and "
            "under torchrun on others: `evenflow launch` writes the script that starts it there"
        )
    check_axes(plan.axes, str(path))
    model = describe_model(source, plan.micro_batch_size, plan.seq_length, plan.axes.tp, plan.dtype)
    if model.fingerprint != plan.fingerprint:
        raise InputError(
            f"{path} is a plan for {plan.model} ({len(plan.layer_names)} layers, fingerprint {plan.fingerprint}), "
            f"not for {model.name} ({len(model.layers)} layers, {model.fingerprint}); `evenflow plan` makes one"
        )
    own = local_cluster().device.name
    if not _is_same_device(plan.device, own):
        raise InputError(f"{path} is a plan for {plan.device}; the ranks of this machine compute on {own}")
    reason = tp_misfit(plan.schedule, plan.axes.tp)
    if reason is not None:
        raise InputError(f"{path}: {reason}")
    return model, plan


def _is_same_device(planned: str, own: str) -> bool:
    """Whether a plan's device is the one here: by its own name, or the catalogue's `A100-80GB` by the driver's.

    The driver calls that `NVIDIA A100-SXM4-80GB`, and an `H100-80GB` without NVLink `NVIDIA H100 PCIe`: every word of
    the catalogue's is there, but for the memory where the driver does not say it.
    """
    if planned == own or CPU in (planned, own):
        return planned == own
    wanted, found = (set(re.split(r"[^a-z0-9]+", name.lower())) for name in (planned, own))
    if not any(_MEMORY.fullmatch(word) for word in found):
        wanted = {word for word in wanted if not _MEMORY.fullmatch(word)}
    return wanted <= found


def check_axes(axes: Axes, whose: str) -> None:
    """Refuse axes that are not run here.

    Raises:
        InputError: which.
    """
    if (axes.cp, axes.ep) != (1, 1):
        raise InputError(f"{whose} has cp {axes.cp} and ep {axes.ep}; train runs pp, tp and dp, so 1 for both would do")


def _stages_per_rank(plan: Plan) -> int | float:
    each = len(plan.stages) / len(plan.ranks)
    return int(each) if each.is_integer() else each


def check_agrees(plan: Plan, job: Job) -> None:
    """Refuse settings that the plan to follow contradicts, rather than pass over either.

    Raises:
        InputError: which setting, and both values.
    """
    settings = (
        ("--processes", job.processes, plan.axes.processes),
        ("--pp", job.pp, plan.axes.pp),
        ("--tp", job.tp, plan.axes.tp),
        ("--dp", job.dp, plan.axes.dp),
        ("--zero", job.zero, plan.zero),
        ("--threads", job.threads, plan.threads),
        ("--schedule", job.schedule, plan.schedule),
        ("--recompute", None if job.recompute == "auto" else job.recompute, plan.recomputed),
        ("--stages-per-rank", job.stages_per_rank, _stages_per_rank(plan)),
        ("--global-batch-size", job.global_batch_size, plan.global_batch_size),
        ("--micro-batch-size", job.micro_batch_size, plan.micro_batch_size),
        ("--seq-length", job.seq_length, plan.seq_length),
        ("--dtype", job.dtype, plan.dtype),
    )
    for option, asked, planned in settings:
        if asked is not None and asked != planned:
            raise InputError(
                f"{option} is {asked}, but {job.plan} has {planned}; without {option} the plan is followed"
            )
    needed = max(rank.peak_bytes for rank in plan.ranks)
    if job.memory_limit is not None and needed > job.memory_limit:
        raise ImpossibleError(
            f"{job.plan} needs {format_bytes(needed)} on its fullest rank, more than the limit of "
            f"{format_bytes(job.memory_limit)}; a plan made with this --memory-limit would fit"
        )
