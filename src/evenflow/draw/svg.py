"""One picture of a step for a README: a lane for each rank, predicted over measured on one time scale."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from evenflow.draw.boxes import Box, begin_s, boxes, drawn_kinds, end_s, most_stages
from evenflow.draw.scale import round_step, seconds_scale
from evenflow.errors import InputError
from evenflow.timeline import Timeline
from evenflow.units import format_percent, format_seconds

_LABEL = 64  # left of the lanes
_SHARE = 84  # right of them
_MARGIN = 16
_HEADING = 34
_LANE = 22
_GAP = 4
_BAND = 4.5  # thickness of the band in a box of its rank's last stage
_BELOW = 2  # of the box, below the band
_LEGEND = 30
_LEGEND_ROW = 22
_BANDS_SHOWN = 4  # in the legend, at most
_AXIS = 30
_TICKS = 8
_DIGIT = 6.2  # width of a digit at the size of the numbers in boxes

# A card of its own colour under everything, so that page and picture need not agree on dark or light.
# Told apart without colour too: forward is light, the input half of backward less so, the whole backward dark, the
# weight half darkest, and the optimizer hatched.
_STYLE = """
text{font:12px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:#1f2328}
.h{font-weight:600;font-size:13px}.q{fill:#59636e}.e{text-anchor:end}.m{text-anchor:middle}
.c{fill:#fff;stroke:#d1d9e0}.l{fill:#eff2f5}.g{stroke:#d1d9e0}
.f{fill:#9ccbf4}.b{fill:#b0521a}.i{fill:#dd8440}.w{fill:#543f9c}.o{fill:url(#hatch)}.hb{fill:#cfe3cf}.hl{stroke:#3f7d46;stroke-width:2.4}
.n{font-size:10.5px;text-anchor:middle}.nf{fill:#0b2540}.nb,.nw{fill:#fff}.ni{fill:#2b1200}
.k{opacity:.6}.kf{fill:#0b2540}.kb,.kw{fill:#fff}.ki{fill:#2b1200}.kl{fill:#59636e}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.q{fill:#9198a1}.c{fill:#12161c;stroke:#3d444d}
.l{fill:#1d232b}.g{stroke:#3d444d}.kl{fill:#9198a1}}
"""


def timeline_svg(timelines: Sequence[Timeline], width: int = 960) -> str:
    """Draw timelines under one another, each with its own begin at the left edge.

    Args:
        timelines: one, or predicted and measured.
        width: the picture's width in pixels; its height follows from the ranks.

    Raises:
        InputError: there is nothing to draw, or no room for it.
    """
    if not timelines:
        raise InputError("there is no timeline to draw; one or two would do")
    if width < 320:
        raise InputError(f"a picture {width} pixels wide has no room for lanes; 320 or more would do")
    span = max(end_s(timeline) - begin_s(timeline) for timeline in timelines)
    pixels = (width - 2 * _MARGIN - _LABEL - _SHARE) / span
    legend, rows = _legend(timelines, width)
    body: list[str] = []
    top = _MARGIN + _LEGEND + (rows - 1) * _LEGEND_ROW
    for timeline in timelines:
        body.append(_panel(timeline, top, width, pixels))
        top += _HEADING + len(timeline.ranks) * (_LANE + _GAP) + 6
    body.append(_axis(span, top, pixels))
    height = top + _AXIS + 4
    words = "; ".join(map(_summary, timelines))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(words)}"><title>{escape(words)}</title>'
        f"<style>{_STYLE}</style>"
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect class="hb" width="6" height="6"/>'
        '<line class="hl" x1="1.5" y1="0" x2="1.5" y2="6"/></pattern></defs>'
        f'<rect class="c" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>'
        f"{legend}{''.join(body)}</svg>\n"
    )


def _summary(timeline: Timeline) -> str:
    return (
        f"{timeline.origin}: step {format_seconds(timeline.step_s)}, idle "
        f"{format_percent(timeline.idle_fraction)}, imbalance {timeline.imbalance:.2f}"
    )


def _panel(timeline: Timeline, top: int, width: int, pixels: float) -> str:
    """One timeline: its heading, and a lane for each rank with its busy share at the right."""
    origin, _, figures = _summary(timeline).partition(": ")
    left, right = _MARGIN + _LABEL, width - _MARGIN
    parts = [
        f'<text class="h" x="{_MARGIN}" y="{top + 22}">{origin.capitalize()}'
        f'<tspan class="q" font-weight="400" dx="8">{figures}</tspan></text>',
        f'<text class="q e" x="{right}" y="{top + 22}">busy</text>',
    ]
    zero = begin_s(timeline)
    for number, rank in enumerate(timeline.ranks):
        y = top + _HEADING + number * (_LANE + _GAP)
        x, wide = left + (rank.begin_s - zero) * pixels, rank.wall_s * pixels
        middle = y + _LANE / 2 + 4
        parts.append(f'<text x="{_MARGIN}" y="{middle:g}">rank {number}</text>')
        parts.append(f'<rect class="l" x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{_LANE}"/>')
        parts.extend(_box(box, left, y, pixels) for box in boxes(timeline, number))
        share = format_percent(rank.busy_s / rank.wall_s)
        parts.append(f'<text class="e" x="{right}" y="{middle:g}">{share}</text>')
    return "".join(parts)


def _box(box: Box, left: int, y: int, pixels: float) -> str:
    x, wide = left + box.start_s * pixels, (box.end_s - box.start_s) * pixels
    # A hairline of lane between neighbours, unless that would take the box away.
    shown = wide - 0.8 if wide > 3 else max(wide, 0.4)
    drawn = f'<rect class="{box.kind}" x="{x:.1f}" y="{y}" width="{shown:.1f}" height="{_LANE}"/>'
    if box.band and shown > 1:
        high = _BAND * box.band
        place = f'x="{x:.1f}" y="{y + _LANE - _BELOW - high:.1f}" width="{shown:.1f}" height="{high:.1f}"'
        drawn += f'<rect class="k k{box.kind}" {place}/>'
    if box.number and shown > len(box.number) * _DIGIT + 2:
        place = f'x="{x + shown / 2:.1f}" y="{y + _LANE / 2 + 4:g}"'
        drawn += f'<text class="n n{box.kind}" {place}>{box.number}</text>'
    return drawn


def _legend(timelines: Sequence[Timeline], width: int) -> tuple[str, int]:
    """What the colours that occur mean, in as many rows as it takes; returns their number too."""
    entries = [(kind, "forward of microbatch n" if kind == "f" else words) for kind, words in drawn_kinds(timelines)]
    entries.append(("l", "idle"))
    stages = most_stages(timelines)
    if stages > 1:
        entries.append(("k", "first to last stage of a rank"))
    parts: list[str] = []
    x, row = _MARGIN, 0
    for kind, words in entries:
        shown = 10 * min(stages, _BANDS_SHOWN) if kind == "k" else 18
        wide = shown + 6 + int(6.6 * len(words))
        if x > _MARGIN and x + wide > width - _MARGIN:
            x, row = _MARGIN, row + 1
        y = _MARGIN + row * _LEGEND_ROW
        parts.append(_bands(stages, x, y) if kind == "k" else _swatch(kind, x, y, 18))
        parts.append(f'<text class="q" x="{x + shown + 6}" y="{y + 11}">{words}</text>')
        x += wide + 22
    return "".join(parts), row + 1


def _swatch(kind: str, x: int, y: int, wide: int) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{wide}" height="14" rx="2"/>'


def _bands(stages: int, x: int, y: int) -> str:
    """Boxes without colour, with the bands of a rank's stages."""
    shown = min(stages, _BANDS_SHOWN)
    parts: list[str] = []
    for number in range(shown):
        high = _BAND * number / (shown - 1)
        left = x + 10 * number
        parts.append(f'<rect class="l" x="{left}" y="{y}" width="9" height="14"/>')
        parts.append(f'<rect class="k kl" x="{left}" y="{y + 14 - _BELOW - high:g}" width="9" height="{high:g}"/>')
    return "".join(parts)


def _axis(span: float, bottom: int, pixels: float) -> str:
    """Round moments under the lanes, in one unit."""
    scale = seconds_scale([span])
    step = round_step(span / scale.size / _TICKS)
    parts: list[str] = []
    tick = 0
    while tick * step <= span / scale.size:
        x = _MARGIN + _LABEL + tick * step * scale.size * pixels
        parts.append(f'<line class="g" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 5}"/>')
        unit = f" {scale.unit}" if tick == 0 else ""
        parts.append(f'<text class="q m" x="{x:.1f}" y="{bottom + 19}">{tick * step:g}{unit}</text>')
        tick += 1
    line = f'<line class="g" x1="{_MARGIN + _LABEL}" y1="{bottom}" '
    line += f'x2="{_MARGIN + _LABEL + span * pixels:.1f}" y2="{bottom}"/>'
    return line + "".join(parts)
