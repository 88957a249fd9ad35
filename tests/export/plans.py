"""Plans of every kind that exports are made of: small, made without measuring, with layers' names as Llama has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evenflow.plan import Axes, Plan
from evenflow.search import equal_split, make_plan, reschedule
from evenflow.search.layouts import LayoutRequest, Pins, plan_layout
from evenflow.spec import Batch, Cluster, Device, Recompute, parse_cluster
from evenflow.spec.presets import PRESETS
from evenflow.spec.trainers import OURS
from tests.files.samples import sample_costs, sample_model


def plan_of(
    schedule: str = "1f1b",
    ranks: int = 4,
    microbatches: int = 8,
    blocks: int = 8,
    stages_per_rank: int | None = None,
    recompute: tuple[Recompute, ...] | None = None,
    split: Sequence[Sequence[int]] | None = None,
    **axes: int,
) -> Plan:
    """A plan under a schedule; recomputation (of the blocks) and other axes are written in, which its split allows."""
    model = sample_model(blocks)
    device = Device("cpu", 8 * 2**30, 64e9, 0.5, 2e9, 1e-4, "made up")
    cluster = Cluster("local", device, ranks, 1, ranks, is_local=True)
    layers = split or equal_split(len(model.layers), ranks)
    own = tuple(map(tuple, layers))
    plan = make_plan(model, cluster, Batch(2 * microbatches, 2, 128), sample_costs(model), split=own)
    if schedule != "1f1b" or stages_per_rank:
        plan = reschedule(plan, schedule, stages_per_rank)
    if recompute is not None:
        modes: tuple[Recompute, ...] = ("none", *recompute, "none")
        modes_of = zip(plan.layers, modes, strict=True)
        plan = replace(plan, layers=tuple(replace(layer, recompute=mode) for layer, mode in modes_of))
    return replace(plan, axes=replace(Axes(pp=ranks), **axes))


TIED, UNTIED = "gpt3-175b", "llama-3.1-70b"


def preset_plan(name: str, trainer: str = OURS, pp: int = 8) -> Plan:
    """What `evenflow plan NAME --for TRAINER` makes for 64 devices, its pipeline so long."""
    pins = Pins(pp=pp, tp=8, cp=1, ep=1, micro_batch_size=1, schedule="1f1b")
    cluster = parse_cluster("8x8xA100-80GB")
    return plan_layout(LayoutRequest(PRESETS[name], cluster, 64, 2048, trainer, pins))
