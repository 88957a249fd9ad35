"""What would only be missed hours later: room for a checkpoint, memory for the plan, and descriptors; asked at once."""

from __future__ import annotations

import resource
import shutil
from contextlib import suppress
from pathlib import Path

from evenflow.errors import ImpossibleError
from evenflow.plan import Plan
from evenflow.spec import Model
from evenflow.spec.cluster import CPU
from evenflow.units import format_bytes

_WEIGHT_BYTES, _MOMENTS = 4, 2  # fp32, and AdamW's two beside each weight
_OWN_DESCRIPTORS = 64  # of a rank or the command line process beside its connections: files, logs, torch's own
_PROC_MEMORY = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_DROPPED = ("inactive_file", "active_file", "slab_reclaimable")  # of a group's memory, what it drops where it has to


def check_room(out: Path, model: Model, keep_last: int) -> str | None:
    """Refuse a disk that has no room for one checkpoint beside the model.

    Args:
        out: the run's folder.
        model: what is trained.
        keep_last: how many checkpoints will be kept.

    Returns:
        A warning, where there is room for that and not for all that are to be kept.

    Raises:
        ImpossibleError: what it needs, what is free, and what would help.
    """
    weights, checkpoint = model.parameters * _WEIGHT_BYTES, checkpoint_bytes(model)
    least, most = checkpoint + weights, (keep_last + 1) * checkpoint + weights
    most -= min(_held(out), keep_last * checkpoint)  # of a run that goes on: those make room for new ones
    free = shutil.disk_usage(out).free
    if free < least:
        raise ImpossibleError(
            f"--out {out} has {format_bytes(free)} free; a checkpoint takes {format_bytes(checkpoint)} and the model "
            f"{format_bytes(weights)}, so {format_bytes(least - free)} more, or another disk, would do"
        )
    if free < most:
        return (
            f"warning: --out {out} has {format_bytes(free)} free; {keep_last} checkpoints, the one being written and "
            f"the model take {format_bytes(most)}. A smaller --keep-last, or {format_bytes(most - free)} more, would do"
        )
    return None


def checkpoint_bytes(model: Model) -> int:
    """What a state takes, on a disk and in the memory of those who save it beside the steps."""
    return model.parameters * _WEIGHT_BYTES * (1 + _MOMENTS)


def _held(out: Path) -> int:
    """Bytes of the checkpoints that a run already has."""
    return sum(file.stat().st_size for file in (out / "checkpoints").glob("step-*/*") if file.is_file())


def check_memory(plan: Plan, processes_here: int, copied_bytes: int = 0) -> None:
    """Refuse a plan that needs more memory than this host has left.

    Args:
        plan: what is to run; of one on GPUs only the copies count, since their own memory is in the plan's limit.
        processes_here: how many of its processes run on this host.
        copied_bytes: what all of them together copy of their state to save it.

    Raises:
        ImpossibleError: what it needs, what is available, and what would help.
    """
    available, axes = available_memory(), plan.axes
    if available is None:
        return
    peaks = [plan.ranks[axes.coordinates(own).pp].peak_bytes for own in range(axes.processes)]
    writers = sum(axes.coordinates(own).dp == 0 for own in range(processes_here))  # replicas have the same state
    copies = copied_bytes * writers * axes.dp // axes.processes
    needed = copies + (sum(sorted(peaks, reverse=True)[:processes_here]) if plan.device == CPU else 0)
    if needed > available:
        helpful = ["--recompute full", "a smaller --micro-batch-size"] if plan.device == CPU else []
        helpful += ["no --save-every"] if copies else []
        of_them = f", {format_bytes(copies)} of it for the copies that --save-every takes" if copies else ""
        raise ImpossibleError(
            f"the plan needs {format_bytes(needed)} in {processes_here} processes{of_them}, and this host has "
            f"{format_bytes(available)} available; {', '.join(helpful)}, or other programs ended, would help"
        )


def check_descriptors(plan: Plan) -> None:
    """See to it that this process may open its connections: to each member of each group that it is in.

    The soft limit is raised where the hard one allows; each rank does that for itself, on its own host.

    Raises:
        ImpossibleError: the limit, what is needed, and how to raise it.
    """
    needed = descriptors(plan)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard == resource.RLIM_INFINITY or hard >= needed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            return
    raise ImpossibleError(
        f"a process of this run opens up to {needed} files and connections, and {soft} is the limit (hard limit "
        f"{'none' if hard == resource.RLIM_INFINITY else hard}); `ulimit -n {needed}` before it would do"
    )


def descriptors(plan: Plan) -> int:
    """How many files and connections a process of a plan opens at the most."""
    axes = plan.axes
    copies = [len({plan.stage_rank[stage] for stage in group}) * axes.dp for group in plan.tied]
    groups = (axes.processes, axes.processes, axes.pp, axes.dp, axes.tp, *copies)  # all meet twice: host and device
    return _OWN_DESCRIPTORS + 2 * sum(members - 1 for members in groups)


def available_memory() -> int | None:
    """Bytes that processes of this host may still take: of the system and of the control group; None if not known."""
    found = []
    try:
        lines = _PROC_MEMORY.read_text().splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit.isdecimal():
            facts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
            dropped = sum(int(facts.get(name, 0)) for name in _DROPPED)
            held = max(int((_CGROUP / "memory.current").read_text()) - dropped, 0)
            found.append(max(int(limit) - held, 0))
    except (OSError, ValueError, IndexError, KeyError):
        pass
    return min(found, default=None)
