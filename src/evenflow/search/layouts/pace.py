"""How long a step of an order takes, for many splits at once: one pass over the order's levels, a column a split.

It is the simulator's step as long as receives are posted and sends are over in time, and no wire is asked for by two
tensors at once; `tests/search/test_layouts.py` holds the two against each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evenflow.search.layouts.orders import OrderArrays

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Seconds of stages, a column for each split: [stages, splits]; `optimizer_s` of ranks."""

    forward_s: Floats
    input_s: Floats
    weight_s: Floats
    reduce_s: Floats
    optimizer_s: Floats


def step_seconds(order: OrderArrays, own: StageSeconds, lag_s: Floats, norm_s: float) -> Floats:
    """Seconds of a step for each split.

    Args:
        order: who runs what after what.
        own: seconds of each stage and rank.
        lag_s: a transfer from stage s to s + 1, for each s (the same back); [stages - 1].
        norm_s: combining the gradient norm over all ranks.
    """
    whole = own.input_s + own.weight_s
    cost = np.concatenate([own.forward_s, whole, own.input_s, own.weight_s])
    lag = np.concatenate([[0.0], lag_s, [0.0], lag_s])
    columns = cost.shape[1]
    end = np.empty((len(order.before), columns))
    slowest = own.optimizer_s.max(axis=0)
    end[: order.ranks] = own.optimizer_s - slowest  # who updates less begins earlier, as a step follows a step
    seconds, late = cost[order.cost], lag[order.edge][:, None]
    for begin, stop in order.levels:
        ready = end.take(order.needs[begin:stop], axis=0)
        ready += late[begin:stop]
        np.maximum(ready, end.take(order.before[begin:stop], axis=0), out=ready)
        ready += seconds[begin:stop]
        end[begin:stop] = ready
    normed = np.empty((order.ranks, columns))
    made = end[order.last]
    for rank, held in enumerate(order.rank_stages):
        reduced = np.full(columns, -np.inf)
        for stage in sorted(held.tolist(), key=lambda stage: int(order.last[stage])):
            reduced = np.maximum(reduced, made[stage]) + own.reduce_s[stage]
        normed[rank] = np.maximum(reduced, end[order.ends[rank]])
    found: Floats = normed.max(axis=0) + norm_s + slowest
    return found
