"""Predicted against measured: the difference of two timelines of one program, as figures and action by action."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evenflow.errors import ProgramError
from evenflow.program import Action
from evenflow.timeline.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, predicted and measured."""

    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Measured / predicted - 1; infinite where nothing was predicted but something measured."""
        if not self.predicted:
            return math.inf if self.measured else 0.0
        return self.measured / self.predicted - 1


@dataclass(frozen=True, slots=True)
class ActionDifference:
    """One action of one rank: its length as predicted and as measured, in seconds."""

    rank: int
    action: Action
    length: Figure


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two timelines of the same program held against each other."""

    step_s: Figure
    idle_fraction: Figure
    imbalance: Figure
    busy_s: tuple[Figure, ...]
    peak_bytes: tuple[Figure, ...]
    actions: tuple[ActionDifference, ...]


def compare(predicted: Timeline, measured: Timeline) -> Comparison:
    """Hold a measured timeline against the predicted one.

    Raises:
        ProgramError: they are not timelines of the same program.
    """
    if predicted.program != measured.program:
        raise ProgramError("the two timelines are not of the same program")
    pairs = list(zip(predicted.ranks, measured.ranks, strict=True))
    return Comparison(
        step_s=Figure(predicted.step_s, measured.step_s),
        idle_fraction=Figure(predicted.idle_fraction, measured.idle_fraction),
        imbalance=Figure(predicted.imbalance, measured.imbalance),
        busy_s=tuple(Figure(ours.busy_s, theirs.busy_s) for ours, theirs in pairs),
        peak_bytes=tuple(Figure(ours.peak_bytes, theirs.peak_bytes) for ours, theirs in pairs),
        actions=tuple(
            ActionDifference(rank, one.action, Figure(one.seconds, other.seconds))
            for rank, (ours, theirs) in enumerate(pairs)
            for one, other in zip(ours.events, theirs.events, strict=True)
        ),
    )
