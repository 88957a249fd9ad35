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
    """Memory of every possible stage, and the cap it must stay under.

    Attributes:
        needs_bytes: entry [s, i, j] is what layers i..j-1 need on stage s; [stages, layers + 1, layers + 1].
        cap_bytes: for each stage, the memory it may use.
    """

    needs_bytes: Array
    cap_bytes: Sequence[float]


def partition(
    seconds: Sequence[float], stages: int, caps: StageCaps | None = None, speeds: Sequence[float] | None = None
) -> tuple[tuple[int, ...], ...] | None:
    """Split layers over stages, every stage at least one layer, with the least possible bottleneck.

    Args:
        seconds: for each layer, its seconds for one microbatch.
        stages: how many stages.
        caps: memory of each stage; without it, memory is free.
        speeds: how fast each stage is computed; by default all equally.

    Returns:
        The layers of each stage, or None where no split stays under the caps.

    Raises:
        InputError: there are more stages than layers.
    """
    layers = len(seconds)
    if not 1 <= stages <= layers:
        raise InputError(f"{layers} layers do not make {stages} stages; 1 to {layers} would do")
    table = [_run_seconds(seconds, stage, caps) / (speeds[stage] if speeds else 1.0) for stage in range(stages)]
    bottleneck = _cheapest(table, np.maximum)[0]
    if not np.isfinite(bottleneck):
        return None
    # Sums of floats differ in their last bits by where a run begins; ties within that count as ties.
    limit = bottleneck * (1 + 1e-9)
    squares = [np.where(times <= limit, times**2, np.inf) for times in table]
    return _cheapest(squares, np.add)[1]


def least_needs(caps: StageCaps) -> tuple[tuple[int, ...], ...]:
    """The split whose neediest stage needs least: the closest where none stays under the caps."""
    layers = caps.needs_bytes.shape[1] - 1
    empty = np.tril_indices(layers + 1)
    table = [needs.astype(np.float64) for needs in caps.needs_bytes]
    for needs in table:
        needs[empty] = np.inf
    return _cheapest(table, np.maximum)[1]


def _run_seconds(seconds: Sequence[float], stage: int, caps: StageCaps | None) -> Array:
    """Entry [i, j]: seconds of layers i..j-1 on a stage; infinite where empty or over the cap."""
    layers = len(seconds)
    total = np.concatenate([[0.0], np.cumsum(np.asarray(seconds, dtype=np.float64))])
    times: Array = total[None, :] - total[:, None]
    times[np.tril_indices(layers + 1)] = np.inf
    if caps is not None:
        times[caps.needs_bytes[stage] > caps.cap_bytes[stage]] = np.inf
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
