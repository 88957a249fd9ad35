"""How long ranks wait for each other: multiples of the step that the plan predicts, longer while a run begins."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from evenflow.launch import Patience

# A first step faults all memory in, and before it stages are built and files read.
_FIRST_STEPS, _FIRST_AT_LEAST_S = 100, 120.0
# Nothing begun in so many steps is no slow rank any more: one that is slowed to a third begins 6 times as many.
# Neither is one that waits for a page of a file on a busy network: until it has that, no thread of it gets to beat.
_STUCK_STEPS, _STUCK_AT_LEAST_S = 20, 30.0
_SILENT_STEPS, _SILENT_AT_LEAST_S = 3, 30.0
# A peer may copy its state between two steps, which the rank that waits does not see.
_GLOO_STEPS, _GLOO_AT_LEAST_S = 40, 60.0
_NEWEST = 200
_WORST_SHARE = 0.99


def first_patience(predicted_s: float) -> Patience:
    """Before the first step is done, from the seconds of the predicted one."""
    return Patience(
        silent_s=max(_SILENT_STEPS * predicted_s, _SILENT_AT_LEAST_S),
        stuck_s=max(_FIRST_STEPS * predicted_s, _FIRST_AT_LEAST_S),
    )


def later_patience(predicted_s: float, steps_s: Sequence[float]) -> Patience:
    """Once steps are done, from their seconds too: a run slower than its plan is not stuck."""
    newest = sorted(steps_s[-_NEWEST:])
    worst = newest[ceil(_WORST_SHARE * len(newest)) - 1]
    return Patience(
        silent_s=max(_SILENT_STEPS * worst, _SILENT_AT_LEAST_S),
        stuck_s=max(_STUCK_STEPS * max(worst, predicted_s), _STUCK_AT_LEAST_S),
    )


def gloo_timeout_s(predicted_s: float, first_s: float | None) -> float:
    """How long one transfer may take; the watch of a run on one host notices sooner, and names who is lost.

    Args:
        predicted_s: the plan's step.
        first_s: what the first step took; None before that, and when files are read or written.
    """
    if first_s is None:
        return first_patience(predicted_s).stuck_s
    return max(_GLOO_STEPS * max(predicted_s, first_s), _GLOO_AT_LEAST_S)
