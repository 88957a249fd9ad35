"""Rehearsed ranks as a terminal table: what each took here beside what the plan says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from evenflow.draw.scale import bytes_scale, seconds_scale
from evenflow.draw.tables import costs_line, new_table, title
from evenflow.draw.words import error_text, ranges, shape_text
from evenflow.plan import Plan
from evenflow.timeline import Figure
from evenflow.units import format_seconds


def rehearsal_table(
    plan: Plan, ranks: Sequence[Mapping[str, Any]], step_s: float | None, device: str, note: str
) -> RenderableType:
    """What ranks took.

    Args:
        plan: what was rehearsed.
        ranks: as `rehearse --json` has each: `rank`, `measured`, `predicted`, `same_as`.
        step_s: the whole step simulated from their times, where all were rehearsed.
        device: what they ran on; seconds of another one are not compared.
        note: what the figures do not say.
    """
    times = [Figure(own["predicted"]["compute_s"], own["measured"]["compute_s"]) for own in ranks]
    peaks = [Figure(own["predicted"]["peak_bytes"], own["measured"]["peak_bytes"]) for own in ranks]
    compute = seconds_scale(value for own in times for value in (own.predicted, own.measured))
    memory = bytes_scale(value for own in peaks for value in (own.predicted, own.measured))
    table = new_table(
        "<rank",
        f"compute\npredicted\n{compute.unit}",
        f"\nmeasured\n{compute.unit}",
        "\n\noff by",
        f"memory\npredicted\n{memory.unit}",
        f"\nmeasured\n{memory.unit}",
        "\n\noff by",
    )
    for own, time, peak in zip(ranks, times, peaks, strict=True):
        table.add_row(
            ranges((own["rank"], *own["same_as"])),
            *(
                compute.text(time.predicted),
                compute.text(time.measured),
                error_text(time) if device == plan.device else "-",
            ),
            *(memory.text(peak.predicted), memory.text(peak.measured), error_text(peak)),
        )
    lines = [Text(note, style="dim")]
    if step_s is not None:
        predicted = format_seconds(plan.predicted.step_s)
        lines.insert(0, Text(f"the whole step from these times: {format_seconds(step_s)} (the plan says {predicted})"))
    return Group(title(plan.model, shape_text(plan)), table, Text(), costs_line(plan), *lines)
