"""Figures as the JSON that scripts read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from evenflow.timeline import Comparison, Figure

if TYPE_CHECKING:
    from evenflow.train import RunResult


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Predicted against measured."""
    return {
        "step_s": _figure(comparison.step_s),
        "idle_fraction": _figure(comparison.idle_fraction),
        "imbalance": _figure(comparison.imbalance),
        "busy_s": [_figure(figure) for figure in comparison.busy_s],
        "peak_bytes": [_figure(figure) for figure in comparison.peak_bytes],
    }


def run_json(result: RunResult) -> dict[str, Any]:
    """What a training run came to."""
    last = result.metrics[-1]
    return {
        "out": str(result.out),
        "steps": last.step,
        "loss": _finite(last.loss),
        "tokens_per_s": result.typical.tokens_per_s,
        "step_s": result.typical.step_s,
        "idle_fraction": result.typical.idle_fraction,
        "imbalance": result.typical.imbalance,
        "peak_bytes": list(last.peak_bytes),
        "comparison": comparison_json(result.comparison),
    }


def _figure(figure: Figure) -> dict[str, float | None]:
    return {"predicted": figure.predicted, "measured": figure.measured, "error": _finite(figure.error)}


def _finite(value: float) -> float | None:
    """JSON has no infinity and no NaN: null stands for what is no number."""
    return value if math.isfinite(value) else None
