"""How a plan's processes are spread over nodes, one a device, and how early they have to be told to stop."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from evenflow.errors import ImpossibleError, InputError
from evenflow.plan import Plan
from evenflow.program import tp_misfit
from evenflow.spec.cluster import CPU
from evenflow.spec.trainers import OURS

_FORM = re.compile(r"(?:(?P<nodes>\d+)x)?(?P<devices>\d+)x[A-Za-z]")  # 4x8xH100-80GB, 8xH100-80GB

_STEPS = 3  # until a wish to stop has gone round and the step that runs then is over
_SAVE_BYTES_PER_S = 50e6  # assumed, of a shared file system that all processes write to at once, for each
_AROUND_S = 120  # Slurm's signal may come a minute late, and what leaves last needs time too


@dataclass(frozen=True, slots=True)
class Spread:
    """Processes on nodes.

    Attributes:
        nodes: how many.
        per_node: processes of each, one a device.
        is_gpu: whether those are GPUs.
        threads: compute threads of each process, where those are not.
        stop_s: seconds from the signal to stop until everything is saved, at the most.
    """

    nodes: int
    per_node: int
    is_gpu: bool
    threads: int
    stop_s: int


def spread_plan(plan: Plan, per_node: int | None = None) -> Spread:
    """The nodes and devices of a plan.

    Args:
        plan: the plan; its cluster's short form (`4x8xH100-80GB`) says how many devices a node has.
        per_node: devices of a node, where that does not.

    Raises:
        InputError: the cluster's name does not say how many devices a node has, and `per_node` does not either.
        ImpossibleError: the processes do not fill nodes, or `evenflow train` cannot run the plan.
    """
    if plan.trainer != OURS:
        raise ImpossibleError(
            f"the plan is for {plan.trainer}, and evenflow train would not run it; `evenflow export PLAN --to "
            f"{plan.trainer}` hands it over"
        )
    for name in ("cp", "ep"):
        if getattr(plan.axes, name) > 1:
            raise ImpossibleError(
                f"evenflow train has no {name}, and the plan has {name} {getattr(plan.axes, name)}; "
                "evenflow export hands it to a trainer that has"
            )
    reason = tp_misfit(plan.schedule, plan.axes.tp)
    if reason is not None:
        raise ImpossibleError(f"evenflow train would not run the plan: {reason}")
    processes = plan.axes.processes
    devices = per_node or _devices_of(plan)
    if processes > devices and processes % devices:
        raise ImpossibleError(
            f"the plan has {processes} processes, which do not fill nodes of {devices} devices; "
            f"{processes // devices * devices} or {-(-processes // devices) * devices} would do"
        )
    state = max(sum(plan.stages[stage].memory.state_bytes for stage in rank.stages) for rank in plan.ranks)
    seconds = _AROUND_S + _STEPS * plan.predicted.step_s + state / _SAVE_BYTES_PER_S
    return Spread(
        nodes=max(processes // devices, 1),
        per_node=min(processes, devices),
        is_gpu=plan.device != CPU,
        threads=plan.threads,
        stop_s=60 * math.ceil(seconds / 60),
    )


def _devices_of(plan: Plan) -> int:
    if plan.cluster == "local":
        return plan.axes.processes
    form = _FORM.match(plan.cluster)
    if form is None:
        raise InputError(
            f"the plan's cluster {plan.cluster!r} does not say how many devices a node has; --per-node 8 would"
        )
    return int(form["devices"])
