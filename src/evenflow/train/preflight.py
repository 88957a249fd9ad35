"""What would only be missed hours later: room for a checkpoint, memory for the plan, and descriptors; asked at once."""

from __future__ import annotations

import resource
import shutil
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
    weights = model.parameters * _WEIGHT_BYTES
    checkpoint = weights * (1 + _MOMENTS)
    least, most = checkpoint + weights, (keep_last + 1) * checkpoint + weights
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


def check_memory(plan: Plan, processes_here: int) -> None:
    """Refuse a plan that needs more memory than this host has left.

    Args:
        plan: what is to run; on processors, since a GPU's memory is in the plan's limit.
        processes_here: how many of its processes run on this host.

    Raises:
        ImpossibleError: what it needs, what is available, and what would help.
    """
    available = available_memory()
    if plan.device != CPU or available is None:
        return
    axes = plan.axes
    peaks = [plan.ranks[axes.coordinates(own).pp].peak_bytes for own in range(axes.processes)]
    needed = sum(sorted(peaks, reverse=True)[:processes_here])
    if needed > available:
        raise ImpossibleError(
            f"the plan needs {format_bytes(needed)} in {processes_here} processes, and this host has "
            f"{format_bytes(available)} available; --recompute full, a smaller --micro-batch-size, or other programs "
            "ended, would help"
        )


def check_descriptors(plan: Plan) -> None:
    """See to it that every process may open its connections: to each peer, in each group that it is in.

    Raises:
        ImpossibleError: the limit, what is needed, and how to raise it.
    """
    peers = plan.axes.processes - 1
    groups = 2 + sum(size > 1 for size in (plan.axes.pp, plan.axes.dp, plan.axes.tp)) + len(plan.tied)
    needed = _OWN_DESCRIPTORS + 2 * peers * groups
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    raise ImpossibleError(
        f"a process of this run opens up to {needed} files and connections, and {soft} is the limit (hard limit "
        f"{'none' if hard == resource.RLIM_INFINITY else hard}); `ulimit -n {needed}` before it would do"
    )


def available_memory() -> int | None:
    """Bytes that processes of this host may still take: of the system and of the control group; None if not known."""
    found = []
    try:
        lines = _PROC_MEMORY.read_text().splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit.isdecimal():
            facts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
            held = int((_CGROUP / "memory.current").read_text()) - int(facts["inactive_file"])  # which it would drop
            found.append(max(int(limit) - held, 0))
    except (OSError, ValueError, IndexError, KeyError):
        pass
    return min(found, default=None)
