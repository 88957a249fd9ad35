"""The exact partition: contiguous layers over stages so that the slowest stage is as fast as it can be.

Dynamic programming over (stage, first layers placed), vectorised over where the stage begins. Among all
splits with the least bottleneck it takes the one with the least sum of squared stage times, so ten equal
layers over four stages come out 2-3-3-2 or the like, never 3-3-3-1.

    best[s][j] = min over i < j of max(best[s-1][i], seconds of layers i..j-1 on stage s)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evenflow.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StageCaps:
    """Memory of a stage as a function of its layers, and the cap it must stay under.

    A run of layers on stage s needs `sum(fixed_bytes) + in_flight[s] * sum(flight_bytes) +
    max(passing_bytes)`.

    Attributes:
        fixed_bytes: for each layer, what it holds all the time.
        flight_bytes: for each layer, what it holds for each microbatch in flight.
        passing_bytes: for each layer, what it holds in passing.
        in_flight: for each stage, microbatches in flight at most.
        cap_bytes: for each stage, the memory it may use.
    """

    fixed_bytes: Sequence[float]
    flight_bytes: Sequence[float]
    passing_bytes: Sequence[float]
    in_flight: Sequence[int]
    cap_bytes: Sequence[float]

    def needs(self, stage: int, first: int, end: int) -> float:
        """Bytes that layers first..end-1 need on `stage`."""
        return (
            sum(self.fixed_bytes[first:end])
            + self.in_flight[stage] * sum(self.flight_bytes[first:end])
            + max(self.passing_bytes[first:end], default=0)
        )


def partition(
    seconds: Sequence[float], stages: int, caps: StageCaps | None = None
) -> tuple[tuple[int, ...], ...] | None:
    """Split layers over stages, every stage at least one layer, with the least possible bottleneck.

    Args:
        seconds: for each layer, its seconds for one microbatch.
        stages: how many stages.
        caps: memory of each stage; without it, memory is free.

    Returns:
        The layers of each stage, or None where no split stays under the caps.

    Raises:
        InputError: there are more stages than layers.
    """
    layers = len(seconds)
    if not 1 <= stages <= layers:
        raise InputError(f"{layers} layers do not make {stages} stages; 1 to {layers} would do")
    table = [_run_seconds(seconds, stage, caps) for stage in range(stages)]
    bottleneck = _cheapest(table, np.maximum)[0]
    if not np.isfinite(bottleneck):
        return None
    # Sums of floats differ in their last bits by where a run begins; ties within that count as ties.
    limit = bottleneck * (1 + 1e-9)
    squares = [np.where(times <= limit, times**2, np.inf) for times in table]
    return _cheapest(squares, np.add)[1]


def _run_seconds(seconds: Sequence[float], stage: int, caps: StageCaps | None) -> Array:
    """Entry [i, j]: seconds of layers i..j-1 on a stage; infinite where empty or over the cap."""
    layers = len(seconds)
    total = np.concatenate([[0.0], np.cumsum(np.asarray(seconds, dtype=np.float64))])
    times: Array = total[None, :] - total[:, None]
    times[np.tril_indices(layers + 1)] = np.inf
    if caps is not None:
        per_layer = np.asarray(caps.fixed_bytes, dtype=np.float64) + caps.in_flight[stage] * np.asarray(
            caps.flight_bytes, dtype=np.float64
        )
        held = np.concatenate([[0.0], np.cumsum(per_layer)])
        passing = np.zeros((layers + 1, layers + 1))
        for first in range(layers):
            passing[first, first + 1 :] = np.maximum.accumulate(np.asarray(caps.passing_bytes)[first:])
        needs = held[None, :] - held[:, None] + passing
        times[needs > caps.cap_bytes[stage]] = np.inf
    return times


def _cheapest(table: Sequence[Array], combine: np.ufunc) -> tuple[float, tuple[tuple[int, ...], ...]]:
    """The cheapest way through all stages, a stage's cost combined with that of those before it."""
    layers = table[0].shape[0] - 1
    best = np.full(layers + 1, np.inf)
    best[0] = 0.0
    begins: list[NDArray[np.intp]] = []
    for times in table:
        through: Array = combine(best[:, None], times)
        begins.append(np.argmin(through, axis=0))
        best = np.min(through, axis=0)
    cost = float(best[layers])
    if not np.isfinite(cost):
        return cost, ()
    end = layers
    split: list[tuple[int, ...]] = []
    for begin in reversed(begins):
        first = int(begin[end])
        split.append(tuple(range(first, end)))
        end = first
    return cost, tuple(reversed(split))
