"""The best split of one layout: the exact partition, or every split where they are few, then moves of single layers."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, permutations
from math import comb

import numpy as np
from numpy.typing import NDArray

from evenflow.cost import rank_links
from evenflow.cost.preset import PresetCosts
from evenflow.search.layouts.bounds import columns, lower_bounds, norm_seconds
from evenflow.search.layouts.layout import Layout
from evenflow.search.layouts.orders import Ints, OrderArrays, order_arrays
from evenflow.search.layouts.pace import step_seconds
from evenflow.search.layouts.stages import WAYS, Fit, Stages, places

Floats = NDArray[np.float64]
_ALL = 3000  # splits: as many as these are all looked at
_MOVES = 160  # splits that one round of moves looks at
_ROUNDS = 6
_ORDERED = 4  # kinds of devices: of as many, every order along the pipeline is looked at
_CLOSE = 1.02  # times the best step so far: moves of layers are worth a hundredth


@dataclass(frozen=True, slots=True)
class Found:
    """A layout's best split.

    Attributes:
        layout: the layout.
        step_s: its step.
        ends: where each stage ends, 0 first.
        modes: what each layer runs again.
        rank_peaks: the most that each rank may hold.
        over_bytes: by how much the closest split is over the limit; 0 where it fits.
        simulated: how many splits were played.
        is_all: whether every split was looked at.
        bound_s: no split of the layout has a shorter step.
        speeds: of its ranks, where they differ.
        limits: what each of its ranks may hold, where they differ.
    """

    layout: Layout
    step_s: float
    ends: tuple[int, ...]
    modes: tuple[str, ...]
    rank_peaks: tuple[float, ...]
    over_bytes: float
    simulated: int
    is_all: bool
    bound_s: float
    speeds: tuple[float, ...] | None = None
    limits: tuple[int, ...] | None = None

    @property
    def peak_bytes(self) -> float:
        """The most that any rank may hold."""
        return max(self.rank_peaks)

    @property
    def split(self) -> tuple[tuple[int, ...], ...]:
        """The layers of each stage."""
        return tuple(tuple(range(one, end)) for one, end in zip(self.ends, self.ends[1:], strict=False))


@dataclass(frozen=True, slots=True)
class Kind:
    """Devices of a cluster that are alike: how many, how fast beside the fastest, and what each may hold."""

    devices: int
    speed: float
    cap: float


class Solver:
    """Solves layouts of one preset; a pipeline rank is on devices of one kind, and kinds follow each other."""

    def __init__(self, costs: PresetCosts, kinds: Sequence[Kind], wish: str) -> None:
        self.costs, self.kinds, self.wish = costs, tuple(kinds), wish
        self.ways = costs.trainer.recomputes if wish == "auto" else (wish,)
        self.cap = max(kind.cap for kind in kinds)
        devices = sum(kind.devices for kind in kinds)
        self.mean_speed = sum(kind.devices * kind.speed for kind in kinds) / devices

    def with_more(self, size: float) -> Solver:
        """The same where every device has so many bytes more."""
        return Solver(self.costs, [replace(kind, cap=kind.cap + size) for kind in self.kinds], self.wish)

    def solve(self, layout: Layout, cutoff: float = np.inf) -> Found:
        """The best split, or where none can be under `cutoff` or fits, the closest: its step is infinite then."""
        found: list[Found] = []
        for way in self.ways:
            found += [_Solve(self, layout, cutoff, way, *ranks).best() for ranks in self.ranks(layout)]
            cutoff = min(cutoff, *(own.step_s for own in found))
        best = min(found, key=lambda own: (own.step_s, own.over_bytes))
        if len(self.kinds) > _ORDERED:  # what was found says nothing of other orders
            return replace(best, bound_s=0.0, is_all=False)
        return replace(best, bound_s=min(own.bound_s for own in found), is_all=all(own.is_all for own in found))

    def of_split(self, layout: Layout, ends: tuple[int, ...]) -> Found:
        """A split that is given."""
        given = np.array([ends], dtype=np.int64)
        ranks = next(self.ranks(layout))
        solves = [_Solve(self, layout, np.inf, way, *ranks) for way in self.ways]
        found = [own.found(given, *own.play(given), is_all=False) for own in solves]
        return min(found, key=lambda own: (own.step_s, own.over_bytes))

    def has_ranks(self, layout: Layout) -> bool:
        """Whether every rank can be on devices of one kind."""
        each = layout.devices // layout.pp
        return all(kind.devices % each == 0 for kind in self.kinds)

    def ranks(self, layout: Layout) -> Iterator[tuple[Floats | None, Floats]]:
        """Speeds and caps of a layout's ranks, for each order of the kinds along the pipeline.

        Of many kinds there are too many orders: those by speed and by memory then, either way round.
        """
        if len(self.kinds) == 1:
            yield None, np.full(layout.pp, self.cap)
            return
        each = layout.devices // layout.pp
        for order in dict.fromkeys(self._orders()):
            times = [kind.devices // each for kind in order]
            yield (
                np.repeat([kind.speed for kind in order], times),
                np.repeat([kind.cap for kind in order], times).astype(np.float64),
            )

    def _orders(self) -> Iterator[tuple[Kind, ...]]:
        if len(self.kinds) <= _ORDERED:
            yield from permutations(self.kinds)
            return
        for order in (
            sorted(self.kinds, key=lambda kind: (kind.speed, kind.cap)),
            sorted(self.kinds, key=lambda kind: (kind.cap, kind.speed)),
        ):
            yield tuple(order)
            yield tuple(reversed(order))


class _Solve:
    def __init__(
        self, solver: Solver, layout: Layout, cutoff: float, way: str, speeds: Floats | None, caps: Floats
    ) -> None:
        costs = solver.costs
        self.layout, self.cutoff = layout, cutoff
        self.order: OrderArrays = order_arrays(layout.schedule, layout.pp, layout.stages_per_rank, layout.microbatches)
        figures = costs.figures(layout.shape)
        step = costs.step_figures(layout.shape, layout.dp, layout.zero)
        self.stages = Stages(figures, step, self.order.counts, caps, way)
        self.wish = way if way in WAYS else "auto"  # of which others are a part
        self.caps, self.speeds = caps, speeds
        links = rank_links(*costs.links(layout.pp, layout.rank_devices), layout.stage_rank)
        self.lag = np.array([links.cost(edge).seconds(figures.hidden_bytes) for edge in pairwise(layout.stage_rank)])
        self.norm_s = norm_seconds(costs, layout)
        self.simulated = 0
        self.bound_s = 0.0
        self.solver = solver

    def _bound(self) -> float:
        """No split is faster: the columns' paths, with what this order lets each rank hold."""
        least = self.stages.least_bottleneck(self.order, self.speeds)
        if not np.isfinite(least):
            return np.inf
        own = columns([self.layout], self.solver.costs, self.solver.cap, self.wish)
        return float(lower_bounds(own, bottleneck=least)[0])

    def best(self) -> Found:
        layers, stages = self.stages.layers.layers, self.layout.stages
        if comb(layers - 1, stages - 1) <= _ALL:
            every = np.array(
                [(0, *cuts, layers) for cuts in combinations(range(1, layers), stages - 1)], dtype=np.int64
            ).reshape(-1, stages + 1)  # fmt: skip
            steps, fit = self.play(every)
            return self.found(every, steps, fit, is_all=True)
        self.bound_s = self._bound()
        if self.bound_s >= self.cutoff:
            even = np.array([_even(layers, stages)])
            begin, end = places(self.order, even)
            return self.found(even, np.array([np.inf]), self.stages.fit(begin, end), is_all=False)
        start = self._starts()
        steps, fit = self.play(start)
        at = _first(steps, fit)
        current, current_s = start[at], float(steps[at])
        kept = self.found(start, steps, fit, is_all=False)
        for _ in range(_ROUNDS if np.isfinite(current_s) and self._is_close(current_s) else 0):
            near = self._moves(current)
            if not len(near):
                break
            steps, fit = self.play(near)
            at = _first(steps, fit)
            if not steps[at] < current_s * (1 - 1e-12):
                break
            current, current_s = near[at], float(steps[at])
            kept = self.found(near, steps, fit, is_all=False)
        return kept

    def _is_close(self, step_s: float) -> bool:
        """Whether moves may bring it under the cutoff: or has none to be under."""
        return step_s < self.cutoff * _CLOSE

    def play(self, ends: Ints) -> tuple[Floats, Fit]:
        """Steps of splits, infinite where they do not fit."""
        begin, end = places(self.order, ends)
        fit = self.stages.fit(begin, end)
        steps = np.full(len(ends), np.inf)
        good = np.flatnonzero(fit.fits.all(axis=1))
        if len(good):
            own = self.stages.seconds(self.order, begin[good], end[good], _only(fit, good), self.speeds)
            steps[good] = step_seconds(self.order, own, self.lag, self.norm_s)
            self.simulated += len(good)
        return steps, fit

    def found(self, ends: Ints, steps: Floats, fit: Fit, is_all: bool) -> Found:
        """The best of splits that were played."""
        at = _first(steps, fit)
        over = float((fit.peak_bytes[at] - self.caps).max())
        begin, end = places(self.order, ends[at : at + 1])
        return Found(
            self.layout, float(steps[at]), tuple(ends[at].tolist()),
            self.stages.modes(begin, end, _only(fit, np.array([at]))), tuple(fit.peak_bytes[at].tolist()),
            max(over, 0.0) if not np.isfinite(steps[at]) else 0.0, self.simulated, is_all,
            float(steps[at]) if is_all else self.bound_s,
            None if self.speeds is None else tuple(self.speeds.tolist()),
            None if self.speeds is None else tuple(int(cap) for cap in self.caps.tolist()),
        )  # fmt: skip

    def _starts(self) -> Ints:
        """Splits whose busiest rank has least to do, differing in which of a rank's stages have a layer more."""
        counts = self._counts()
        own = self.stages.layers
        every = own.forward_s + own.input_s[0] + own.weight_s
        heavy = round(float(every[-1] / np.median(every[1:-1])))
        found = np.array([self._ends(counts, way, head) for way in range(3) for head in {0, heavy}])
        found = np.unique(found[(np.diff(found, axis=1) > 0).all(axis=1)], axis=0)
        return found if len(found) else np.array([_even(self.stages.layers.layers, self.layout.stages)])

    def _counts(self) -> list[int]:
        """Layers of each rank: one by one to whichever is the least busy with it."""
        layers, pp, each = self.stages.layers.layers, self.layout.pp, self.layout.stages_per_rank
        table = self._rank_table()
        counts = [each] * pp
        left = layers - pp * each
        heap = [(float(table[rank, each + 1]) if each + 1 < table.shape[1] else np.inf, rank) for rank in range(pp)]
        heapq.heapify(heap)
        while left:
            _, rank = heapq.heappop(heap)
            counts[rank] += 1
            left -= 1
            after = counts[rank] + 1
            heapq.heappush(heap, (float(table[rank, after]) if after < table.shape[1] else np.inf, rank))
        return counts

    def _rank_table(self) -> Floats:
        """Seconds of a rank that has so many layers, its stages as even as they can be: [ranks, layers + 1]."""
        layers, pp, each = self.stages.layers.layers, self.layout.pp, self.layout.stages_per_rank
        counts = np.arange(layers + 1)
        sizes = (counts[:, None] + np.arange(each)[::-1][None, :]) // each
        begin = np.empty((layers + 1, pp, each), dtype=np.int64)
        end = np.empty_like(begin)
        for rank in range(pp):
            for place, stage in enumerate(self.order.rank_stages[rank].tolist()):
                size = sizes[:, place]
                if stage == 0:
                    one = np.zeros_like(size)
                elif stage == self.layout.stages - 1:
                    one = layers - size
                else:  # somewhere among the blocks, which are taken to be like those there
                    middle = 1 + (layers - 2) * stage // self.layout.stages
                    one = np.clip(middle, 1, np.maximum(layers - 1 - size, 1))
                begin[:, rank, place], end[:, rank, place] = one, np.minimum(one + size, layers)
        fit = self.stages.fit(begin, end, is_alone=True)
        seconds = self.stages.rank_seconds(begin, end, fit).T
        if self.speeds is not None:
            seconds = seconds / self.speeds[:, None]
        over = np.where(fit.fits.T, 0.0, 1e6 * (1 + fit.peak_bytes.T / self.caps[:, None]))
        return np.where(np.isfinite(seconds), seconds, over)

    def _ends(self, counts: list[int], way: int, heavy: int) -> list[int]:
        """Where stages end: a rank's blocks over its stages, what is left over first, last, or from the middle.

        The head counts as `heavy` blocks where a rank has other stages to put them on.
        """
        each, stages = self.layout.stages_per_rank, self.layout.stages
        sizes = np.empty(stages, dtype=np.int64)
        for rank, count in enumerate(counts):
            held = self.order.rank_stages[rank].tolist()
            first, last = 0 in held, stages - 1 in held
            blocks = count - first - last
            weight = min(heavy, blocks // each) if last and each > 1 else 0
            least, more = divmod(blocks + weight, each)
            begin = (0, each - more, (each - more) // 2)[way]
            own = [least + (begin <= place < begin + more) for place in range(each)]
            for place, stage in enumerate(held):
                sizes[stage] = own[place] + (stage == 0) + (stage == stages - 1) * (1 - weight)
        return [0, *np.cumsum(sizes).tolist()]

    def _moves(self, ends: Ints) -> Ints:
        """Splits with a layer moved from one stage to another through those between."""
        stages = self.layout.stages
        runs = [(length, first) for length in range(1, stages) for first in range(1, stages - length + 1)]
        if len(runs) > _MOVES // 2:
            runs = self._likely(runs)
        found = []
        for length, first in runs:
            for by in (-1, 1):
                moved = ends.copy()
                moved[first : first + length] += by
                if moved[first - 1] < moved[first] and moved[first + length - 1] < moved[first + length]:
                    found.append(moved)
        return np.array(found, dtype=np.int64).reshape(-1, stages + 1)

    def _likely(self, runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Of too many moves, those between neighbours and those from and to either end."""
        stages = self.layout.stages
        ends = [(length, first) for length, first in runs if first == 1 or first + length == stages or length == 1]
        step = max(len(ends) * 2 // _MOVES, 1)
        return ends[::step]


def _even(layers: int, stages: int) -> list[int]:
    return [layers * stage // stages for stage in range(stages + 1)]


def _only(fit: Fit, at: Ints) -> Fit:
    return Fit(fit.fits[at], fit.again[at], fit.pair[at], fit.input_s[at], fit.peak_bytes[at])


def _first(steps: Floats, fit: Fit) -> int:
    """The shortest step; where none fits, the split that is least over."""
    if np.isfinite(steps).any():
        return int(np.argmin(steps))
    return int(np.argmin(fit.peak_bytes.max(axis=1)))
