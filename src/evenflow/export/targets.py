"""The trainers that plans are exported to, by name; what was written is read back and held against the plan."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

from evenflow.errors import FaultError, InputError
from evenflow.export.deepspeed import DEEPSPEED
from evenflow.export.exported import Export, Target
from evenflow.export.megatron import MEGATRON
from evenflow.export.torch_script import TORCH
from evenflow.export.torchtitan import TORCHTITAN
from evenflow.plan import Plan
from evenflow.spec.trainers import TRAINERS
from evenflow.units import format_bytes

TARGETS: dict[str, Target] = {
    "megatron": MEGATRON,
    "torchtitan": TORCHTITAN,
    "deepspeed": DEEPSPEED,
    "torch": TORCH,
}


def export_plan(plan: Plan, target: str) -> Export:
    """A plan as a trainer's own configuration.

    Raises:
        InputError: the trainer is not known.
        ImpossibleError: it cannot express the plan.
        FaultError: what was written does not say the plan's split: ours to mend.
    """
    if target not in TARGETS:
        raise InputError(f"--to {target} is not known; {', '.join(TARGETS)} are")
    found = TARGETS[target]
    export = found.make(plan)
    split, ranks = found.read(export.files)
    if split != plan.stage_layers or ranks != plan.stage_rank:
        raise FaultError(
            f"what was written for {target} reads back as {[list(stage) for stage in split]} on the ranks "
            f"{list(ranks)}, not as the plan; nothing was handed over"
        )
    return replace(export, notes=(*_predicted_for(plan, target), *export.notes, *_unequal_devices(plan)))


def _predicted_for(plan: Plan, target: str) -> list[str]:
    """What is to be said where the plan's step and memory are those under another trainer."""
    if target not in TRAINERS or plan.trainer == target:
        return []
    return [
        f"the plan's step and memory are predicted for {plan.trainer}; `evenflow plan ... --for {target}` plans for "
        f"what {target} does"
    ]


def _unequal_devices(plan: Plan) -> list[str]:
    """Which device a rank is planned for, where they differ: no trainer's configuration says so."""
    speeds = plan.speeds or (1.0,) * len(plan.ranks)
    limits = plan.memory_limits or (plan.memory_limit,) * len(plan.ranks)
    devices = list(zip(speeds, limits, strict=True))
    if len(set(devices)) == 1:
        return []
    said = []
    for (speed, limit), same in groupby(range(len(devices)), key=devices.__getitem__):
        first, *rest = same
        who = f"ranks {first} to {rest[-1]} are planned for ones" if rest else f"rank {first} is planned for one"
        said.append(f"{who} of speed {speed:.3g} that may use {format_bytes(limit)}")
    return [
        "the pipeline's devices differ, and these files do not say which rank belongs on which: "
        f"{', '.join(said)}; started elsewhere, a rank is slower than planned or runs out of memory"
    ]
