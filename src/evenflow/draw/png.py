"""A step's picture as PNG, for papers and READMEs.

By matplotlib, an extra: it needs no browser, has hatches and its own font, so the same picture comes out everywhere. A
rasteriser of our SVG would need cairo on the machine (cairosvg), or fonts of it (pillow).
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from evenflow.draw.boxes import begin_s, boxes, drawn_kinds, end_s
from evenflow.draw.scale import seconds_scale
from evenflow.errors import InputError
from evenflow.timeline import Timeline
from evenflow.units import format_percent, format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Lightness tells kinds apart without colour; the optimizer is hatched.
_LOOKS = {"f": "#9ccbf4", "b": "#b0521a", "i": "#dd8440", "w": "#543f9c", "o": "#cfe3cf"}
_ON = {"f": "#0b2540", "b": "#ffffff", "i": "#2b1200", "w": "#ffffff", "o": "#3f7d46"}
_INCHES, _DOTS = 9.6, 150
_LANE, _HEAD = 0.25, 0.75  # inches
_LARGEST = 60.0  # inches high: beyond, lanes get thinner


def timeline_png(timelines: Sequence[Timeline]) -> bytes:
    """Draw timelines under one another on one time scale, each with its own begin at the left edge.

    Raises:
        InputError: there is nothing to draw, or matplotlib is missing.
    """
    if not timelines:
        raise InputError("there is no timeline to draw; one or two would do")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        raise InputError(
            "--png draws with matplotlib, which is not installed; pip install matplotlib, or --svg"
        ) from None
    ranks = len(timelines[0].ranks)
    height = min(len(timelines) * (ranks * _LANE + _HEAD) + 0.6, _LARGEST)
    figure = Figure(figsize=(_INCHES, height), dpi=_DOTS, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    span = max(end_s(timeline) - begin_s(timeline) for timeline in timelines)
    scale = seconds_scale([span])
    all_axes = figure.subplots(len(timelines), 1, sharex=True, squeeze=False)[:, 0]
    for timeline, axes in zip(timelines, all_axes, strict=True):
        _panel(axes, timeline, scale.size, span / scale.size)
    all_axes[-1].set_xlabel(f"time, {scale.unit}")
    entries = [
        Patch(
            facecolor=_LOOKS[kind],
            edgecolor=_ON["o"],
            hatch="////" if kind == "o" else None,
            linewidth=0.4,
            label=words,
        )
        for kind, words in drawn_kinds(timelines)
    ]
    entries.append(Patch(facecolor="#eff2f5", edgecolor="#8c959f", linewidth=0.4, label="idle"))
    figure.legend(handles=entries, loc="outside upper left", ncols=len(entries), frameon=False, fontsize=8)
    picture = BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _panel(axes: Axes, timeline: Timeline, unit: float, span: float) -> None:
    zero, ranks = begin_s(timeline), len(timeline.ranks)
    figures = (
        f"{timeline.origin}: step {format_seconds(timeline.step_s)}, idle {format_percent(timeline.idle_fraction)}"
    )
    axes.set_title(figures, loc="left", fontsize=9)
    axes.set_xlim(0, span)
    axes.set_ylim(ranks - 0.5, -0.5)
    axes.set_yticks(range(ranks), [f"rank {rank}" for rank in range(ranks)], fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    for rank, own in enumerate(timeline.ranks):
        begin = (own.begin_s - zero) / unit
        axes.broken_barh([(begin, own.wall_s / unit)], (rank - 0.42, 0.84), facecolor="#eff2f5")
        by_kind: dict[str, list[tuple[float, float]]] = {}
        for box in boxes(timeline, rank):
            length = (box.end_s - box.start_s) / unit
            by_kind.setdefault(box.kind, []).append((box.start_s / unit, length))
            if box.number and length > span * 0.008 * (1 + len(box.number)):
                middle = box.start_s / unit + length / 2
                axes.text(middle, rank, box.number, color=_ON[box.kind], fontsize=6.5, ha="center", va="center")
        for kind, bars in by_kind.items():
            look: dict[str, Any] = {"facecolor": _LOOKS[kind], "edgecolor": "white", "linewidth": 0.3}
            if kind == "o":
                look |= {"edgecolor": _ON["o"], "hatch": "//////", "linewidth": 0.0}
            axes.broken_barh(bars, (rank - 0.42, 0.84), **look)
