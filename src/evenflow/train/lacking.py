"""Says what a rank without memory held and what its plan expects, whoever noticed: the rank itself or the kernel."""

from __future__ import annotations

from evenflow.plan import Plan
from evenflow.units import format_bytes


def with_stages(plan: Plan, process: int) -> str:
    """The stages of a process, with their layers: `with stage 1 (layers 3-5)`."""
    stages = plan.ranks[plan.axes.coordinates(process).pp].stages
    return "with stage " + " and ".join(f"{own} ({_layers_of(plan, own)})" for own in stages)


def held_and_planned(plan: Plan, process: int, held: str) -> str:
    """What it held beside what it was planned to, and what would need less."""
    planned = plan.ranks[plan.axes.coordinates(process).pp].peak_bytes
    return (
        f"it held {held}, the plan expects {format_bytes(planned)}. More processes, a smaller --micro-batch-size or "
        "--recompute full need less"
    )


def _layers_of(plan: Plan, stage: int) -> str:
    layers = plan.stages[stage].layers
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}"
