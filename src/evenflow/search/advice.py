"""What a person should know about a plan: lines with figures and what would help."""

from __future__ import annotations

from statistics import median

from evenflow.cost import Costs
from evenflow.spec import Layer, Model
from evenflow.units import format_bytes, format_percent

_ROUNDED = 1.005  # what is printed is rounded to three digits; a limit that is read back must not be too small


def advice(model: Model, costs: Costs, devices: int) -> tuple[str, ...]:
    """Lines about what keeps this model from an even split over `devices`."""
    notes: list[str] = []
    seconds = [cost.forward_s + cost.backward_s for cost in costs.layers]
    share = sum(seconds) / devices
    heaviest = max(range(len(seconds)), key=seconds.__getitem__)
    if devices > 1 and seconds[heaviest] > share:
        even = max(int(sum(seconds) / seconds[heaviest]), 1)
        notes.append(
            f"{_title(model.layers[heaviest])} alone is {format_percent(seconds[heaviest] / sum(seconds))} of the "
            f"work, more than an equal share over {devices} ranks ({format_percent(1 / devices)}): at best the "
            f"busiest rank works {seconds[heaviest] / share:.2f} times the mean. What would help: "
            f"{even} {'rank' if even == 1 else 'ranks'} instead of {devices}, more or wider blocks, or "
            f"{_lighter(model.layers[heaviest])}"
        )
    blocks = [index for index, layer in enumerate(model.layers) if layer.kind == "block"]
    head = len(model.layers) - 1
    if blocks:
        block = median([seconds[index] for index in blocks])
        if block > 0 and seconds[head] > 1.5 * block:
            notes.append(f"the head is worth {seconds[head] / block:.1f} blocks")
    return tuple(notes)


def would_fit(need_bytes: float) -> str:
    """What would help where nothing fits and the closest needs so much on its neediest rank."""
    limit = format_bytes(need_bytes * _ROUNDED)
    return (
        f"a memory limit of {limit} would fit, on devices that have it, as may more processes or a smaller microbatch"
    )


def _title(layer: Layer) -> str:
    return {"embedding": "the embedding", "head": "the head", "block": f"block {layer.name}"}[layer.kind]


def _lighter(layer: Layer) -> str:
    return "a smaller vocabulary" if layer.kind in ("embedding", "head") else "a lighter block there"
