"""A figure over a run's steps as a small picture inside a page; its colours are the page's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import isfinite

from evenflow.draw.scale import round_step

_WIDTH, _HEIGHT = 480, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 10, 12, 30
_MOST_POINTS = 1000

Point = tuple[int, float]


def curve_svg(points: Sequence[Point], name: str, text: Callable[[float], str], reference: float | None = None) -> str:
    """Draw `points` (step, figure) as a line; where a figure is not a number the line has a gap.

    Args:
        points: in rising order of steps, at least one.
        name: what the figure is.
        text: how a figure is written.
        reference: a figure to hold the line against, drawn dashed.
    """
    shown = _thinned(points)
    values = [value for _, value in shown if isfinite(value)] or [0.0]
    low, high = _limits([*values, *([reference] if reference is not None else [])])
    first, last = shown[0][0], max(shown[-1][0], shown[0][0] + 1)

    def place(step: float, value: float) -> str:
        x = _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)
        return f"{x:.1f},{_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    parts = [_value_axis(low, high, text), _step_axis(first, shown[-1][0])]
    if reference is not None:
        level = place(first, reference).split(",")[1]
        parts.append(f'<line class="reference" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{level}" y2="{level}"/>')
    for run in _finite_runs(shown):
        spots = [place(*point) for point in run]
        if len(spots) == 1:
            x, y = spots[0].split(",")
            parts.append(f'<circle class="point" cx="{x}" cy="{y}" r="3"/>')
        else:
            parts.append(f'<polyline class="line" points="{" ".join(spots)}"/>')
    ends = f"{name}: {text(points[0][1])} at step {points[0][0]}, {text(points[-1][1])} at step {points[-1][0]}"
    return (
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(ends)}">'
        f"<title>{escape(ends)}</title>{''.join(parts)}</svg>"
    )


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most about a thousand of them, evenly spread, the first and last among them."""
    stride = -(-len(points) // _MOST_POINTS)
    shown = list(points[::stride])
    return shown if shown[-1] == points[-1] else [*shown, points[-1]]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    # Where a float's last bits alone differ, an axis would count in them.
    is_level = high - low <= 1e-9 * max(abs(low), abs(high))
    room = abs(high) * 0.1 or 1.0 if is_level else (high - low) * 0.08
    return low - room, high + room


def _finite_runs(points: Sequence[Point]) -> list[list[Point]]:
    runs: list[list[Point]] = [[]]
    for point in points:
        if isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _value_axis(low: float, high: float, text: Callable[[float], str]) -> str:
    step = round_step((high - low) / 7)
    tick = -(-low // step)
    parts: list[str] = []
    while tick * step <= high:
        y = _HEIGHT - _BOTTOM - (tick * step - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        label = escape(text(round(tick * step, 12)))
        parts.append(f'<text class="tick end" x="{_LEFT - 8}" y="{y + 4:.1f}">{label}</text>')
        tick += 1
    return "".join(parts)


def _step_axis(first: int, last: int) -> str:
    marks = sorted({first, (first + last) // 2, last})
    room = _WIDTH - _LEFT - _RIGHT
    parts: list[str] = []
    for mark in marks:
        x = _LEFT + ((mark - first) / (last - first) * room if last > first else 0)
        side = "start" if mark == first else "end" if mark == last else "middle"
        label = f"step {mark}" if mark == first else str(mark)
        parts.append(f'<text class="tick {side}" x="{x:.1f}" y="{_HEIGHT - 8}">{label}</text>')
    return "".join(parts)
