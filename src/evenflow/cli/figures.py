"""Figures as the JSON that scripts read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evenflow.timeline import Comparison, Figure, Findings, Timeline

if TYPE_CHECKING:
    from evenflow.files import StepMetrics
    from evenflow.plan import Plan
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
        **_evaluated(result.metrics),
        "tokens_per_s": result.typical.tokens_per_s,
        "step_s": result.typical.step_s,
        "idle_fraction": result.typical.idle_fraction,
        "imbalance": result.typical.imbalance,
        "peak_bytes": list(last.peak_bytes),
        "comparison": comparison_json(result.comparison),
    }


def _evaluated(metrics: Sequence[StepMetrics]) -> dict[str, float | None]:
    """What the last evaluation found; nothing where there was none."""
    last = next((own for own in reversed(metrics) if own.eval_loss is not None), None)
    if last is None or last.eval_loss is None or last.eval_perplexity is None:
        return {}
    return {"eval_loss": _finite(last.eval_loss), "eval_perplexity": _finite(last.eval_perplexity)}


def _figure(figure: Figure) -> dict[str, float | None]:
    return {"predicted": figure.predicted, "measured": figure.measured, "error": _finite(figure.error)}


def _finite(value: float) -> float | None:
    """JSON has no infinity and no NaN: null stands for what is no number."""
    return value if math.isfinite(value) else None


def why_json(plan: Plan, shown: Timeline, findings: Findings) -> dict[str, Any]:
    """Who waits for whom, the critical path, stragglers, and what a faster rank would gain; seconds everywhere."""
    from evenflow.draw import finding_lines
    from evenflow.program import action_text
    from evenflow.timeline import blames, critical_path, path_seconds, waits

    path = critical_path(shown)
    ranks = []
    columns = zip(shown.ranks, waits(shown), blames(shown), path_seconds(path, len(shown.ranks)), strict=True)
    for rank, (own, found, roots, spent) in enumerate(columns):
        direct: dict[tuple[str, int | None, str | None], float] = {}
        for wait in found:
            theirs = action_text(wait.peer_action) if wait.peer_action is not None else None
            key = (wait.cause, wait.peer, theirs)
            direct[key] = direct.get(key, 0.0) + wait.seconds
        ranks.append(
            {
                "rank": rank,
                "wall_s": own.wall_s,
                "busy_s": own.busy_s,
                "optimizer_s": own.optimizer_s,
                "idle": [
                    {"cause": cause, "rank": peer, "action": action, "seconds": seconds}
                    for (cause, peer, action), seconds in sorted(direct.items(), key=lambda item: -item[1])
                ],
                "goes_back_to": [
                    {"cause": one.cause, "rank": one.rank, "kind": one.kind, "stage": one.stage, "seconds": one.seconds}
                    for one in roots
                ],
                "critical_path": spent,
            }
        )
    return {
        "origin": shown.origin,
        "step_s": shown.step_s,
        "ranks": ranks,
        "critical_path": [
            {
                "rank": part.rank,
                "action": action_text(part.action),
                "cause": part.cause,
                "start_s": part.start_s - path[0].start_s,
                "seconds": part.seconds,
            }
            for part in path
        ],
        "stragglers": [
            {"rank": own.rank, "busy_s": own.busy_s, "expected_s": own.expected_s, "late_s": own.late_s}
            | {"step_on_time_s": then.step_s}
            for own, then in findings.late
        ],
        "faster": [
            {"rank": own.rank, "speed": own.speed, "step_s": own.step_s, "gain": own.gain} for own in findings.faster
        ],
        "advice": list(finding_lines(plan, shown, findings)),
    }
