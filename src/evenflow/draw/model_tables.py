"""A model and its measured costs as terminal tables, equal layers on one row."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from rich.console import Group, RenderableType
from rich.text import Text

from evenflow.cost import Profile
from evenflow.draw.scale import bytes_scale, count_scale, seconds_scale
from evenflow.draw.tables import new_table, title
from evenflow.draw.words import plain, ranges
from evenflow.spec import Layer, Model
from evenflow.spec.accelerators import Accelerator
from evenflow.units import format_bytes, format_count, format_flops, format_percent, format_seconds

_MOST_ROWS = 12
_MOST_INDEX_LETTERS = 14


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that do the same work: one row."""

    indexes: tuple[int, ...]
    layer: Layer

    @property
    def where(self) -> str:
        """Which layers these are, cut where it would fill the table."""
        text = ranges(self.indexes)
        if len(text) <= _MOST_INDEX_LETTERS:
            return text
        return f"{ranges(self.indexes[:2])}, ... {self.indexes[-1]}"

    @property
    def what(self) -> str:
        """What these layers are: `embedding`, `32 blocks`."""
        count = len(self.indexes)
        return self.layer.kind if count == 1 else f"{count} {self.layer.kind}s"


def layer_groups(model: Model) -> tuple[LayerGroup, ...]:
    """Runs of equal layers; where kinds alternate into many runs, all equal layers wherever they are."""
    runs: list[list[int]] = []
    for index, layer in enumerate(model.layers):
        if runs and _same(model.layers[runs[-1][0]], layer):
            runs[-1].append(index)
        else:
            runs.append([index])
    if len(runs) > _MOST_ROWS:
        merged: dict[tuple[str, str], list[int]] = {}
        for index, layer in enumerate(model.layers):
            merged.setdefault((layer.kind, layer.signature), []).append(index)
        runs = list(merged.values())
    return tuple(LayerGroup(tuple(run), model.layers[run[0]]) for run in runs)


def model_table(model: Model) -> RenderableType:
    """The model's layers: parameters, FLOPs and bytes of one layer for one microbatch, and totals."""
    groups = layer_groups(model)
    layers = model.layers
    saved_total = sum(layer.saved_bytes for layer in layers)
    forward = sum(layer.forward_flops for layer in layers)
    backward = sum(layer.backward_flops for layer in layers)
    # By the largest layer, not by the total, or small layers would lose their digits.
    parameters = count_scale(layer.parameters for layer in layers)
    flops = count_scale(layer.backward_flops for layer in layers)
    saved = bytes_scale(layer.saved_bytes for layer in layers)
    output = bytes_scale(layer.output_bytes for layer in layers)
    table = new_table(
        "<layers",
        "<each",
        f"params\n{parameters.unit}",
        f"forward\n{flops.unit}FLOP",
        f"backward\n{flops.unit}FLOP",
        f"saved\n{saved.unit}",
        f"to next\n{output.unit}",
    )
    for group in groups:
        layer = group.layer
        table.add_row(
            group.where,
            group.what,
            parameters.text(layer.parameters),
            flops.text(layer.forward_flops),
            flops.text(layer.backward_flops),
            saved.text(layer.saved_bytes),
            output.text(layer.output_bytes),
        )
    table.add_section()
    table.add_row(
        "total",
        f"{len(layers)} layers",
        parameters.text(model.parameters),
        flops.text(forward),
        flops.text(backward),
        saved.text(saved_total),
        "",
        style="bold",
    )
    weights = sum(layer.parameter_bytes for layer in layers)
    tied = ", embedding and head tied" if model.tied_embeddings else ""
    about = f"{plain(model.architecture)}, {format_count(model.parameters)} parameters ({format_bytes(weights)}){tied}"
    shape = f"{model.micro_batch_size} x {model.seq_length} tokens"
    foot = Text(f"A row's figures are of one layer, for one microbatch of {shape}.", style="dim")
    return Group(title(model.name, about), table, foot)


def profile_table(profile: Profile, model: Model) -> RenderableType:
    """What was measured: a layer's seconds (the median of equal ones), its share, and how fast it ran."""
    costs = profile.layers
    work = [cost.forward_s + cost.backward_s for cost in costs]
    compute = seconds_scale(seconds for cost in costs for seconds in (cost.forward_s, cost.backward_s))
    once = seconds_scale(cost.norm_s + cost.optimizer_s for cost in costs)
    table = new_table(
        "<layers",
        "<each",
        f"forward\n{compute.unit}",
        f"backward\n{compute.unit}",
        f"optimizer\n{once.unit}",
        "share\nof all",
        "of peak\nFLOP/s",
    )
    for group in layer_groups(model):
        own = [costs[index] for index in group.indexes]
        seconds = sum(work[index] for index in group.indexes)
        flops = len(own) * (group.layer.forward_flops + group.layer.backward_flops)
        table.add_row(
            group.where,
            group.what,
            compute.text(median(cost.forward_s for cost in own)),
            compute.text(median(cost.backward_s for cost in own)),
            once.text(median(cost.norm_s + cost.optimizer_s for cost in own)),
            _percent(seconds, sum(work)),
            _percent(flops, seconds * profile.peak_flops),
        )
    table.add_section()
    table.add_row(
        "total",
        f"{len(costs)} layers",
        compute.text(sum(cost.forward_s for cost in costs)),
        compute.text(sum(cost.backward_s for cost in costs)),
        once.text(sum(cost.norm_s + cost.optimizer_s for cost in costs)),
        "",
        _percent(model.flops, sum(work) * profile.peak_flops),
        style="bold",
    )
    shape = f"{profile.micro_batch_size} x {profile.seq_length} tokens"
    processes = "1 process" if profile.processes == 1 else f"{profile.processes} processes"
    threads = "1 thread" if profile.threads == 1 else f"{profile.threads} threads"
    about = f"{processes} of {threads}, a microbatch of {shape}"
    return Group(title(profile.model, about), table, Text(), *_profile_lines(profile))


def _profile_lines(profile: Profile) -> list[Text]:
    beside = f"{format_seconds(profile.stage_forward_s)} forward, {format_seconds(profile.stage_backward_s)}"
    link, adding, machine = profile.link, profile.sum_link, profile.machine
    rate = f"{format_bytes(link.bytes_per_s)}/s" if link.bytes_per_s < float("inf") else "no time for bytes"
    lines = [
        f"a stage costs {beside} backward beside its layers",
        f"a transfer takes {format_seconds(link.latency_s)} + {rate}; the norm's reduction "
        f"{format_seconds(profile.reduce_s)}",
        *([f"gradients of replicas are added at {format_bytes(adding.bytes_per_s)}/s"] if adding else []),
        f"peak {format_flops(profile.peak_flops)}/s, on {plain(machine.processor)}, {machine.cores} cores, "
        f"{format_bytes(machine.memory_bytes)}, torch {plain(profile.torch_version)}",
    ]
    return [Text(line, style="dim") for line in lines]


def _same(one: Layer, other: Layer) -> bool:
    return one.kind == other.kind and one.signature == other.signature


def _percent(part: float, whole: float) -> str:
    return format_percent(part / whole) if whole else "-"


def device_table(device: Accelerator) -> RenderableType:
    """A catalogue entry: each figure, and whether it was measured, is analytic (its data sheet's) or is assumed."""
    table = new_table("<figure", "value", "<origin")
    rows = (
        ("half_flops", "products in half precision", format_flops(device.half_flops) + "/s"),
        ("single_flops", "products in fp32", format_flops(device.single_flops) + "/s"),
        ("memory_bytes", "memory", format_bytes(device.memory_bytes)),
        ("memory_bytes_per_s", "copies in memory", format_bytes(device.memory_bytes_per_s) + "/s"),
        ("node_bytes_per_s", device.node_wire or "link in the node", format_bytes(device.node_bytes_per_s) + "/s"),
        ("network_bytes_per_s", device.network_wire or "network", format_bytes(device.network_bytes_per_s) + "/s"),
    )
    for name, what, value in rows:
        table.add_row(what, value, device.origin(name))
    return Group(title(device.name, f"{device.node_devices} of them here"), table, Text(device.source))
