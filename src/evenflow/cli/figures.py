"""Figures as the JSON that scripts read."""

from __future__ import annotations

from typing import Any

from evenflow.timeline import Comparison, Figure


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Predicted against measured."""
    return {
        "step_s": _figure(comparison.step_s),
        "idle_fraction": _figure(comparison.idle_fraction),
        "imbalance": _figure(comparison.imbalance),
        "busy_s": [_figure(figure) for figure in comparison.busy_s],
        "peak_bytes": [_figure(figure) for figure in comparison.peak_bytes],
    }


def _figure(figure: Figure) -> dict[str, float]:
    return {"predicted": figure.predicted, "measured": figure.measured, "error": figure.error}
