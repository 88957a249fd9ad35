"""A proven lower bound of the step of every layout, in numpy: no split of whole layers that fits goes below it.

Let one microbatch's work of all layers be W, that of rank r be t_r (forward and backward), f_r its forward, p ranks, m
microbatches. What is proved of t_r comes from counting: rank r holds at most N_r(T) blocks where none of its time
exceeds T and its state and what it has in flight stay under the cap, each block in whichever way to recompute serves
best (a linear program of two rows, solved in closed form, and rounded down). If the N_r(T) do not add up to all
blocks, some rank takes longer than T. The least T at which they do is found by bisection.

From the order of actions follow paths that a step contains. With one stage a rank, for the last q ranks on average:

* 1F1B: the first microbatch goes to the end and back to rank r, which has run p - r forwards by then and does the rest
  of its work after, then the last backward goes down: W + (m - 1) t_r - (p - 1 - r) f_r;
* GPipe: W + (m - 1) t_r; with several stages a rank, whose forwards and backwards lie apart, m t_r;
* halves (ZB): all work of a rank, m t_r. ZB-H1 has in flight what 1F1B has, ZB-H2 2 (p - r) - 1 microbatches.

With several stages a rank in a loop, rank r has m t_r, and before and after it the first stages of the ranks before it:
the embedding, and a block at least in each of the others. Such a rank has in flight, when its warm-up ends, all of a
round in every stage but its last, and 2 (p - 1 - r) + 1 microbatches in that.

A step is no shorter than what the first microbatch takes, all the way and back: W. All t_r together are W, and none is
over T, so the last q have at least W - (p - q) T. The step is at least the least over T of the greater of m T, which
rises, and of these, which fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evenflow.cost.preset import PresetCosts
from evenflow.search.layouts.layout import Layout
from evenflow.search.layouts.stages import WAYS

Floats = NDArray[np.float64]
_GROUPS = 8  # ranks in a row that are counted alike, as the one that holds least of them
_HALVINGS = 22
_SHARES = np.array([[0.0], [0.125], [0.25], [0.5], [1.0]])  # of the ranks: the last ones, whose paths are averaged
_SLACK = 1e-9


@dataclass(slots=True)
class Columns:
    """What bounds need of each layout, an entry each; blocks are the lightest of their model in every figure."""

    p: Floats
    m: Floats
    each: Floats
    blocks: Floats
    block_s: Floats  # [3, layouts], forward and backward
    block_bytes: Floats  # [3, layouts], saved
    work: Floats
    first_s: Floats
    head_s: Floats
    forward_share: Floats
    state: Floats
    first_state: Floats
    head_state: Floats
    update: Floats
    first_update: Floats
    least_update: Floats
    lightest: Floats
    excess: Floats
    first_work: Floats
    norm: Floats
    cap: Floats
    hop: Floats
    kind: NDArray[np.int64]


_KINDS = {"1f1b": 0, "gpipe": 1, "interleaved": 2, "zb-h1": 3, "zb-h2": 4}
_OTHERS = 5  # of halves too; those that have both ends on one rank among them
_LOOPED_GPIPE = 6


def bounds(
    layouts: Sequence[Layout],
    costs: PresetCosts,
    cap: float,
    wish: str,
    with_memory: bool = True,
    mean_speed: float = 1.0,
) -> Floats:
    """Seconds that the step of each layout takes at least; infinite where nothing fits.

    How many stages a rank has in a loop does not matter here, so such layouts are worked out once.
    """
    alike: dict[Layout, int] = {}
    which = [alike.setdefault(own if own.stages_per_rank < 3 else replace(own, stages_per_rank=2), len(alike))
             for own in layouts]  # fmt: skip
    found: Floats = lower_bounds(columns(list(alike), costs, cap, wish), with_memory, mean_speed=mean_speed)[which]
    return found


def columns(layouts: Sequence[Layout], costs: PresetCosts, cap: float, wish: str) -> Columns:
    """The columns of layouts."""
    made: dict[object, tuple[float, ...]] = {}
    rows = []
    way = WAYS.index(wish)
    for own in layouts:
        key = (own.shape, own.dp, own.zero, own.pp == 1)
        if key not in made:
            made[key] = _row(costs, own, way)
        rows.append(made[key])
    table = np.array(rows).T
    count = np.array([(own.pp, own.microbatches, own.stages_per_rank) for own in layouts], dtype=np.float64).T
    kinds = np.array([_kind(own) for own in layouts])
    hops = np.array([costs.least_hop_s(own.pp, own.shape, own.rank_devices) for own in layouts])
    total = np.array([float(costs.architecture.layers)] * len(layouts))
    alone = dict(zip(_ROW, table[6:], strict=True))
    return Columns(
        p=count[0], m=count[1], each=count[2], blocks=total, block_s=table[0:3], block_bytes=table[3:6], **alone,
        cap=np.full(len(layouts), cap), hop=hops, kind=kinds,
    )  # fmt: skip


def _kind(layout: Layout) -> int:
    if layout.schedule == "gpipe" and layout.stages_per_rank > 1:
        return _LOOPED_GPIPE
    return _KINDS.get(layout.schedule, _OTHERS)


_ROW = (
    "work", "first_s", "head_s", "forward_share", "state", "first_state", "head_state", "update", "first_update",
    "least_update", "lightest", "excess", "first_work", "norm",
)  # fmt: skip


def _row(costs: PresetCosts, layout: Layout, way: int) -> tuple[float, ...]:
    figures, step = costs.figures(layout.shape), costs.step_figures(layout.shape, layout.dp, layout.zero)
    blocks = slice(1, -1)
    ways = range(3) if way == 3 else (way,)
    seconds = [figures.forward_s + figures.input_s[own] + figures.weight_s for own in range(3)]
    saved = figures.saved_bytes
    light = [float(seconds[own][blocks].min()) if own in ways else np.inf for own in range(3)]
    kept = [float(saved[own][blocks].min()) if own in ways else np.inf for own in range(3)]
    best = min(ways, key=lambda own: float(seconds[own].sum()))
    every = seconds[best]
    update = step.reduce_s + step.optimizer_s
    share = float((figures.forward_s[1:] / every[1:]).max())
    excess = max(float(figures.forward_s[0] - share * every[0]), 0.0)
    first_work = float(every[0])
    is_alone = layout.pp == 1
    head_state = float(step.state_bytes[-1]) - (step.tied_state_bytes if is_alone else 0.0)
    return (
        *light, *kept, float(every.sum()), float(every[0]), float(every[-1]), share,
        float(step.state_bytes[blocks].min()), float(step.state_bytes[0]),
        head_state + float(figures.saved_bytes[0][-1]), float(update.sum()) if is_alone else 0.0,
        float(update[0]), float(update.min()), min(light), excess, first_work, norm_seconds(costs, layout),
    )  # fmt: skip


def norm_seconds(costs: PresetCosts, layout: Layout) -> float:
    """Adding one number over all ranks."""
    return costs.fabric.seconds("all-reduce", 8.0, layout.devices)


def lower_bounds(
    own: Columns, with_memory: bool = True, bottleneck: float | None = None, mean_speed: float = 1.0
) -> Floats:
    """Seconds that the step of each layout takes at least; infinite where nothing fits.

    Args:
        own: the layouts.
        with_memory: whether what ranks can hold counts.
        mean_speed: of all devices, beside the fastest, which the columns are of.
        bottleneck: seconds that the busiest rank needs for a microbatch at least, where that is known.
    """
    least = np.maximum(own.work / (own.p * mean_speed), own.block_s.min(axis=0))
    if bottleneck is not None:
        least = np.maximum(least, bottleneck)
    elif with_memory:
        least = np.maximum(least, _least_bottleneck(own))
    found = _paths(own, least)
    alone = own.m * least + own.update
    # Whole backwards end with the first layer's, and its update; of halves any rank may be the last.
    many = found + np.where(_is_halved(own), own.least_update, own.first_update)
    return np.where(own.p == 1, np.maximum(alone, own.m * own.work + own.update), many) * (1 - _SLACK) + own.norm


def _is_halved(own: Columns) -> NDArray[np.bool_]:
    return (own.kind >= _KINDS["zb-h1"]) & (own.kind <= _OTHERS)


def _in_flight(own: Columns, rank: Floats) -> Floats:
    """Blocks' worth of activations that a rank keeps for each block that it holds, at least."""
    single = np.minimum(own.m, own.p - rank)
    loop = np.minimum(np.minimum(own.p, own.m), 2 * (own.p - 1 - rank) + 1)
    ahead = np.minimum(own.m, 2 * (own.p - rank) - 1)
    held = [single, own.m, loop, single, ahead, np.ones_like(rank), own.m]
    return np.select([own.kind == kind for kind in range(len(held))], held)


def _least_bottleneck(own: Columns) -> Floats:
    """The least time of the busiest rank at which the ranks can hold all blocks."""
    low = np.zeros_like(own.p)
    slowest = own.block_s.max(axis=0, where=np.isfinite(own.block_s), initial=0.0)
    high = (own.blocks * slowest + own.head_s + own.first_s) * 1.001
    crowd = _Crowd(own)
    fits = crowd.held(high) >= own.blocks
    for _ in range(_HALVINGS):
        half = (low + high) / 2
        enough = crowd.held(half) >= own.blocks
        low, high = np.where(enough, low, half), np.where(enough, half, high)
    return np.where(fits, low, np.inf)


class _Crowd:
    """How many blocks all ranks can hold, each busy for no more than so long."""

    def __init__(self, own: Columns) -> None:
        last, first = own.p - 1, np.zeros_like(own.p)
        zero = np.zeros_like(own.p)
        # In a V both ends are on the first rank; counted as if they took nothing.
        is_v = own.kind == _OTHERS
        alone = own.p == 1
        self.places = [
            _Place(own, np.where(alone, 0.0, 1.0), np.where(is_v, last, first), np.where(is_v, zero, own.first_s),
                   np.where(is_v, zero, own.first_state)),
            _Place(own, np.where(alone, 0.0, 1.0), last, np.where(is_v, zero, own.head_s),
                   np.where(is_v, zero, own.head_state)),
            _Place(own, np.where(alone, 1.0, 0.0), last, own.first_s + own.head_s, own.first_state + own.head_state),
        ]  # fmt: skip
        middle = np.maximum(own.p - 2, 0)
        for group in range(_GROUPS):
            begin, end = np.floor(middle * group / _GROUPS), np.floor(middle * (group + 1) / _GROUPS)
            if (end > begin).any():
                self.places.append(_Place(own, end - begin, end, zero, zero))

    def held(self, seconds: Floats) -> Floats:
        """All ranks' blocks."""
        total = np.zeros_like(seconds)
        for place in self.places:
            total += place.held(seconds)
        return total


class _Place:
    """The most blocks of one rank: two rows, seconds and bytes, so at most two ways mixed."""

    def __init__(self, own: Columns, times: Floats, rank: Floats, taken_s: Floats, taken: Floats) -> None:
        self.times, self.taken_s, self.block_s = times, taken_s, own.block_s
        self.room = own.cap - taken
        self.need = own.state + _in_flight(own, rank) * own.block_bytes
        with np.errstate(invalid="ignore", divide="ignore"):
            self.by_room = [self.room / self.need[way] for way in range(3)]
            self.pairs = []
            for one, other in ((0, 1), (0, 2), (1, 2)):
                a, b, c, d = own.block_s[one], own.block_s[other], self.need[one], self.need[other]
                det = a * d - b * c
                if np.isfinite(det).any() and (det != 0).any():
                    self.pairs.append((d / det, -b * self.room / det, a * self.room / det, -c / det))

    def held(self, seconds: Floats) -> Floats:
        """So many, times the ranks that are alike."""
        left = seconds - self.taken_s
        with np.errstate(invalid="ignore", divide="ignore"):
            best = np.minimum(left / self.block_s[0], self.by_room[0])
            for way in (1, 2):
                best = np.fmax(best, np.minimum(left / self.block_s[way], self.by_room[way]))
            for x_rate, x_base, y_base, y_rate in self.pairs:
                x, y = left * x_rate + x_base, y_base + left * y_rate
                best = np.where((x >= 0) & (y >= 0), np.fmax(best, x + y), best)
        whole = np.floor(best * (1 + 1e-12) + 1e-9)
        return np.where(self.times > 0, self.times * np.where((left < 0) | (self.room < 0), -1e9, whole), 0.0)


def _paths(own: Columns, least: Floats) -> Floats:
    """The least over T of the greater of m T and what the last ranks' paths come to."""
    low, high = least, np.maximum(least, own.work)
    finite = np.isfinite(least)
    low, high = np.where(finite, low, 0.0), np.where(finite, high, 0.0)
    for _ in range(_HALVINGS):
        half = (low + high) / 2
        rises = own.m * half >= _last_ranks(own, half)
        low, high = np.where(rises, low, half), np.where(rises, half, high)
    found = own.m * np.maximum(least, low)
    return np.where(finite, found, np.inf)


def _last_ranks(own: Columns, bottleneck: Floats) -> Floats:
    """The longest of the paths through the last q ranks, averaged, where no rank is busier than `bottleneck`."""
    # Whatever the order, the first microbatch goes through all layers and back; of halves, without the weights' last.
    whole = own.work + 2 * own.hop * (own.p * own.each - 1)
    best = np.where((own.p == 1) | _is_halved(own), 0.0, whole)
    q = np.clip(np.round(own.p * _SHARES), 1, own.p)  # [shares, layouts]
    busy = np.maximum(own.work - (own.p - q) * bottleneck, 0.0) / q
    found = own.m * busy
    for kind, path in enumerate((_of_1f1b, _of_gpipe, _of_loop)):
        there = own.kind == kind
        if there.any():
            found = np.where(there, path(own, bottleneck, q, busy), found)
    longest: Floats = np.maximum(best, found.max(axis=0))
    return longest


def _of_1f1b(own: Columns, bottleneck: Floats, q: Floats, busy: Floats) -> Floats:
    after = (q - 1) / 2  # ranks after them, on average
    found: Floats = (
        own.work
        + (own.m - 1) * busy
        - after * own.forward_share * bottleneck
        - np.where(q == own.p, own.excess, 0.0)
        + 2 * own.hop * (own.p - 1)
    )
    return found


def _of_gpipe(own: Columns, _: Floats, __: Floats, busy: Floats) -> Floats:
    found: Floats = own.work + (own.m - 1) * busy + 2 * own.hop * (own.p - 1)
    return found


def _of_loop(own: Columns, _: Floats, q: Floats, busy: Floats) -> Floats:
    ahead = own.p - 1 - (q - 1) / 2  # ranks before them, on average
    found: Floats = (
        own.m * busy
        + ahead * (own.lightest + 2 * own.hop)
        - np.where(q == own.p, (own.p - 1) / own.p, 1.0) * np.maximum(own.lightest - own.first_work, 0.0)
    )
    return found
