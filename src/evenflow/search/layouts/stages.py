"""What splits of a layout's layers cost and need: the least recomputation that fits, and the step, for many at once.

A rank that keeps too much runs the first of its layers again in their backward, as few as fit: some again in part and
the others not at all, some in whole and the others not at all, or some in whole and all others in part, whichever adds
least seconds. Less recomputation never makes a step longer, so no other mixture of two ways has to be tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evenflow.cost.preset import LayerFigures, StepFigures
from evenflow.search.layouts.orders import Counts, Ints, OrderArrays
from evenflow.search.layouts.pace import StageSeconds

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
# Of what crosses between stages, a rank may hold beside what is in flight: received early, being sent, being made; and
# as many again for each of its stages.
_BUFFERS = 4
_STAGE_BUFFERS = 4
_PAIRS = ((0, 1), (0, 2), (1, 2))  # keep and run again: nothing and in part, nothing and in whole, in part and whole
WAYS = ("none", "selective", "full", "auto")
_WHOLE = 2  # the way that runs all of a forward again


@dataclass(frozen=True, slots=True)
class Fit:
    """How splits fit: [splits, ranks] or [splits, ranks, stages of a rank].

    Attributes:
        fits: whether a rank stays under its cap.
        again: of a rank's layers, how many are run again in the second of two ways.
        pair: which two ways: 3 x first + second.
        input_s: I of each stage.
        peak_bytes: the most a rank holds.
    """

    fits: Bools
    again: Ints
    pair: Ints
    input_s: Floats
    peak_bytes: Floats


class Stages:
    """The layers of one layout, summed up so that any run of them is a difference."""

    def __init__(
        self, layers: LayerFigures, step: StepFigures, counts: tuple[Counts, ...], caps: Floats, wish: str
    ) -> None:
        self.layers, self.step, self.caps = layers, step, caps
        self.forward, self.weight = _sums(layers.forward_s), _sums(layers.weight_s)
        self.input = [_sums(layers.input_s[way]) for way in range(3)]
        self.saved = [_sums(layers.saved_bytes[way]) for way in range(3)]
        self.pending = _sums(layers.pending_bytes)
        self.state, self.reduce, self.optimizer = (
            _sums(step.state_bytes), _sums(step.reduce_s), _sums(step.optimizer_s)
        )  # fmt: skip
        most = max(len(own.saved) for own in counts)
        # [ranks, stages of a rank, moments]
        self.count_saved = np.stack([_padded(own.saved, most).T for own in counts]).astype(np.float64)
        self.count_pending = np.stack([_padded(own.pending, most).T for own in counts]).astype(np.float64)
        # Inputs lie in buffers that are never given up: as many as are ever in flight at once.
        flights = np.array([(own.saved + own.pending).sum(axis=1).max() for own in counts], dtype=np.float64)
        self.each = counts[0].saved.shape[1]
        self.buffers = (flights + _BUFFERS + _STAGE_BUFFERS * self.each) * layers.hidden_bytes
        self.has_pending = bool(self.count_pending.any())
        blocks = np.flatnonzero(layers.is_block)
        self.passing_block = [float(layers.passing_bytes[way][blocks].max(initial=0.0)) for way in range(3)]
        self.passing_head = float(layers.passing_bytes[0][-1])
        self.fixed = WAYS.index(wish) if wish in WAYS[:3] else None
        self.is_first = wish == "first"
        saves = [self.saved[0][-1] > self.saved[1][-1], True, self.saved[1][-1] > self.saved[2][-1]]
        self.pairs = [pair for pair, useful in zip(_PAIRS, saves, strict=True) if useful]
        if not saves[0] or wish in ("first", "whole"):
            self.pairs = [(0, _WHOLE)]
        self.ways = (0, 1, 2) if wish == "auto" else (0, _WHOLE) if self.fixed is None else (self.fixed,)

    def fit(self, begin: Ints, end: Ints, is_alone: bool = False) -> Fit:
        """The least that each rank runs again.

        Args:
            begin: the first layer of each stage of each rank, [splits, ranks, stages of a rank].
            end: the layer after its last.
            is_alone: whether each rank counts by itself, also where all have to run equally many again.
        """
        has_head = (end == self.layers.layers).any(axis=2)
        base = (self.state[end] - self.state[begin]).sum(axis=2) + self.buffers
        base = base - np.where(has_head & (begin == 0).any(axis=2), self.step.tied_state_bytes, 0.0)
        held_pending: Floats | float = 0.0
        if self.has_pending:
            held_pending = _by_moment(self.pending[end] - self.pending[begin], self.count_pending)
        head = np.where(has_head, self.passing_head, 0.0)
        start = 0 if self.fixed is None else self.fixed
        none = np.zeros(begin.shape[:2], dtype=np.int64)
        peak = self._peak(begin, end, none, (start, start), base, held_pending, head)
        fits = peak <= self.caps
        again, pair = none, np.full(begin.shape[:2], 4 * start)
        if self.fixed is None and not fits.all():
            if self.is_first:
                again, pair, peak, fits = self._first_ones(begin, end, fits, base, held_pending, head, is_alone)
            else:
                again, pair, peak, fits = self._lighter(begin, end, peak, fits, base, held_pending, head)
        return Fit(fits, again, pair, self._inputs(begin, end, again, pair), peak)

    def _peak(
        self, begin: Ints, end: Ints, again: Ints, ways: tuple[int, int], base: Floats,
        held_pending: Floats | float, head: Floats,
    ) -> Floats:  # fmt: skip
        keep, rerun = ways
        middle = self._middle(begin, end, again)
        saved = self.saved[keep][end] - self.saved[keep][middle] + self.saved[rerun][middle] - self.saved[rerun][begin]
        saved = np.maximum(saved - self.layers.hidden_bytes, 0.0)
        held = _by_moment(saved, self.count_saved)
        passing = np.where(
            again > 0, max(self.passing_block[rerun], self.passing_block[keep]), self.passing_block[keep]
        )
        found: Floats = base + (held + held_pending).max(axis=2) + np.maximum(passing, head)
        return found

    def _middle(self, begin: Ints, end: Ints, again: Ints) -> Ints:
        """For each stage of a rank, the layer after the last that is run again."""
        if not self.is_first:
            return _middle(begin, end, again)
        blocks = np.where(again > 0, again, -1)[:, :, None]  # -1: not even the embedding, which is before them
        found: Ints = np.clip(begin + (begin == 0) + blocks, begin, end)
        return found

    def _first_ones(
        self, begin: Ints, end: Ints, fits: Bools, base: Floats, held_pending: Floats | float, head: Floats,
        is_alone: bool,
    ) -> tuple[Ints, Ints, Floats, Bools]:  # fmt: skip
        """The fewest blocks at the beginning of each stage, equally many in all, that have to run again in whole."""
        pair = (0, _WHOLE)
        most = (end - begin).max(axis=2)
        low, high = np.ones_like(most), most.copy()
        for _ in range(int(most.max()).bit_length()):
            half = (low + high) // 2
            good = self._peak(begin, end, half, pair, base, held_pending, head) <= self.caps
            high, low = np.where(good, half, high), np.where(good, low, np.minimum(half + 1, high))
        again = np.where(fits, 0, high)
        if not is_alone:
            again = np.where(fits.all(axis=1, keepdims=True), 0, np.broadcast_to(high.max(axis=1)[:, None], high.shape))
        peak = self._peak(begin, end, again, pair, base, held_pending, head)
        return again, np.full_like(again, 3 * pair[0] + pair[1]), peak, peak <= self.caps

    def _lighter(
        self, begin: Ints, end: Ints, peak: Floats, fits: Bools, base: Floats, held_pending: Floats | float,
        head: Floats,
    ) -> tuple[Ints, Ints, Floats, Bools]:  # fmt: skip
        """For ranks that do not fit, the cheapest of the ways that do."""
        total = (end - begin).sum(axis=2)
        best_again, best_pair = np.zeros_like(total), np.zeros_like(total)
        best_peak, best_s = np.where(fits, peak, np.inf), np.where(fits, 0.0, np.inf)
        for pair in self.pairs:
            low, high = np.zeros_like(total), total.copy()
            all_peak = self._peak(begin, end, high, pair, base, held_pending, head)
            plain = self._peak(begin, end, low, pair, base, held_pending, head) <= self.caps
            low, high = np.where(plain, 0, np.minimum(1, high)), np.where(plain, 0, high)
            for _ in range(int(total.max()).bit_length()):
                half = (low + high) // 2
                good = self._peak(begin, end, half, pair, base, held_pending, head) <= self.caps
                high, low = np.where(good, half, high), np.where(good, low, np.minimum(half + 1, high))
            added = self._added(begin, end, high, pair)
            enough = all_peak <= self.caps
            own_peak = self._peak(begin, end, high, pair, base, held_pending, head)
            better = enough & (own_peak <= self.caps) & (added < best_s)
            best_again, best_pair = (
                np.where(better, high, best_again),
                np.where(better, 3 * pair[0] + pair[1], best_pair),
            )
            best_peak, best_s = np.where(better, own_peak, best_peak), np.where(better, added, best_s)
            lost = ~np.isfinite(best_peak)  # what is closest where nothing fits
            best_again = np.where(lost, total, best_again)
        found = np.isfinite(best_s)
        closest = self._peak(begin, end, total, self.pairs[-1], base, held_pending, head)
        best_pair = np.where(found, best_pair, 3 * self.pairs[-1][0] + self.pairs[-1][1])
        return best_again, best_pair, np.where(found, best_peak, closest), found

    def _added(self, begin: Ints, end: Ints, again: Ints, pair: tuple[int, int]) -> Floats:
        middle = self._middle(begin, end, again)
        keep, rerun = self.input[pair[0]], self.input[pair[1]]
        seconds = keep[end] - keep[middle] + rerun[middle] - rerun[begin] - (self.input[0][end] - self.input[0][begin])
        found: Floats = seconds.sum(axis=2)
        return found

    def _inputs(self, begin: Ints, end: Ints, again: Ints, pair: Ints) -> Floats:
        middle = self._middle(begin, end, again)
        table = np.stack(self.input)
        keep, rerun = (pair // 3)[:, :, None], (pair % 3)[:, :, None]
        found: Floats = table[keep, end] - table[keep, middle] + table[rerun, middle] - table[rerun, begin]
        return found

    def rank_seconds(self, begin: Ints, end: Ints, fit: Fit) -> Floats:
        """Seconds of a rank for one microbatch; infinite where it does not fit. [splits, ranks]."""
        forward = self.forward[end] - self.forward[begin] + self.weight[end] - self.weight[begin]
        found: Floats = np.where(fit.fits, (forward + fit.input_s).sum(axis=2), np.inf)
        return found

    def seconds(self, order: OrderArrays, begin: Ints, end: Ints, fit: Fit, speeds: Floats | None) -> StageSeconds:
        """As a pass over levels needs them: stages in the model's order, a column a split."""
        forward, weight = self.forward[end] - self.forward[begin], self.weight[end] - self.weight[begin]
        reduce_s = self.reduce[end] - self.reduce[begin]
        optimizer = (self.optimizer[end] - self.optimizer[begin]).sum(axis=2)
        inputs = fit.input_s
        if speeds is not None:
            forward, weight, inputs = (own / speeds[None, :, None] for own in (forward, weight, inputs))
            optimizer = optimizer / speeds[None, :]
        where = np.argsort(order.rank_stages.ravel())

        def by_stage(own: Floats) -> Floats:
            return own.reshape(len(own), -1)[:, where].T

        return StageSeconds(by_stage(forward), by_stage(inputs), by_stage(weight), by_stage(reduce_s), optimizer.T)

    def least_bottleneck(self, order: OrderArrays, speeds: Floats | None) -> float:
        """Seconds for a microbatch that the busiest rank needs at least, whatever the split.

        A rank with n blocks, one at least in each of its stages but those with embedding or head, keeps at each moment
        what is in flight of those, and the rest of its blocks at least as often as the stage that has fewest in flight.
        That holds of the mean of several moments too.
        What a block run again saves is at most its bytes times the most that any stage has in flight. Blocks are the
        lightest of their model in every figure.
        """
        own, blocks = self.layers, np.flatnonzero(self.layers.is_block)
        ways = self.ways
        kept = [float(own.saved_bytes[way][blocks].min()) for way in range(3)]
        seconds = [float((own.forward_s + own.input_s[way] + own.weight_s)[blocks].min()) for way in range(3)]
        base = ways[0]
        rates = [
            (seconds[way] - seconds[base]) / (kept[base] - kept[way]) for way in ways if kept[way] < kept[base]
        ]  # fmt: skip
        most_saved = kept[base] - min(kept[way] for way in ways)
        state = float(self.step.state_bytes[blocks].min())
        total = len(blocks)
        counts = np.arange(total + 1, dtype=np.float64)
        again = min((self.passing_block[way] for way in ways if kept[way] < kept[base]), default=0.0)
        sizes = (max(kept[base] - own.hidden_bytes, 0.0), float(own.pending_bytes[blocks].min()))
        taken: list[Floats] = []
        for rank, held in enumerate(order.rank_stages):
            first, last = 0 in held, order.stages - 1 in held
            plain = np.isin(held, (0, order.stages - 1), invert=True)
            saved, pending = self.count_saved[rank].T, self.count_pending[rank].T  # [moments, stages of a rank]
            total_rows = saved.sum(axis=1)
            full = total_rows >= total_rows.max() - len(held)
            # The fullest moment holds no less than the mean of several does.
            saved = np.concatenate([saved, [saved[full].mean(axis=0), saved.mean(axis=0)]])
            pending = np.concatenate([pending, [pending[full].mean(axis=0), pending.mean(axis=0)]])
            need = sum(
                size * _held_at_least(rows, plain, counts) for size, rows in zip(sizes, (saved, pending), strict=True)
            )
            room = self.caps[rank] - self.buffers[rank] - counts * state - self.passing_block[base] * (counts > 0)
            room = room - first * float(self.step.state_bytes[0]) - last * float(self.step.state_bytes[-1])
            room = room + first * last * self.step.tied_state_bytes
            over = np.maximum(need - room[None, :], 0.0)
            over = np.where(over > 0, over + max(again - self.passing_block[base], 0.0), 0.0)
            lacks = (over / np.maximum(saved.max(axis=1), 1.0)[:, None]).max(axis=0)  # bytes of blocks to let go of
            rate = min(rates) if rates else np.inf
            extra = np.multiply(lacks, rate, out=np.zeros_like(lacks), where=lacks > 0)
            ends = [at for at, has in ((0, first), (-1, last)) if has]
            ends_s = sum(float(own.forward_s[at] + own.input_s[0][at] + own.weight_s[at]) for at in ends)
            fits = (lacks <= counts * most_saved) & (room >= 0)
            taken.append(np.maximum.accumulate(np.where(fits, counts * seconds[base] + extra + ends_s, np.inf)))
        table = np.stack(taken)
        return _least_of(table if speeds is None else table / speeds[:, None], total)

    def modes(self, begin: Ints, end: Ints, fit: Fit) -> tuple[str, ...]:
        """What each layer of the first split does again."""
        found = ["none"] * self.layers.layers
        middle = self._middle(begin, end, fit.again)
        for rank in range(begin.shape[1]):
            keep, rerun = divmod(int(fit.pair[0, rank]), 3)
            for one, cut, stop in zip(begin[0, rank], middle[0, rank], end[0, rank], strict=True):
                for layer in range(one, stop):
                    if self.layers.is_block[layer]:
                        found[layer] = WAYS[rerun if layer < cut else keep]
        return tuple(found)


def _middle(begin: Ints, end: Ints, again: Ints) -> Ints:
    """For each stage of a rank, the layer after the last that is run again."""
    size = end - begin
    before = np.cumsum(size, axis=2) - size
    found: Ints = begin + np.clip(again[:, :, None] - before, 0, size)
    return found


def _held_at_least(rows: Floats, plain: Bools, counts: Floats) -> Floats:
    """Blocks' worth that n blocks have at each moment, [moments, n]: one in each plain stage, the rest where least."""
    rest = np.maximum(counts - plain.sum(), 0.0)[None, :]
    ones = np.where(counts[None, :] >= plain.sum(), rows[:, plain].sum(axis=1)[:, None], 0.0)
    found: Floats = ones + rows.min(axis=1)[:, None] * rest
    return found


def _least_of(seconds: Floats, blocks: int) -> float:
    """The least time at which ranks that need `seconds[rank, n]` for n blocks can hold all: it only rises with n."""
    possible = np.sort(seconds[np.isfinite(seconds)])
    low, high = 0, len(possible) - 1
    while low < high:
        half = (low + high) // 2
        enough = ((seconds <= possible[half]).sum(axis=1) - 1).clip(min=0).sum() >= blocks
        low, high = (low, half) if enough else (half + 1, high)
    if not len(possible) or ((seconds <= possible[high]).sum(axis=1) - 1).clip(min=0).sum() < blocks:
        return float("inf")
    return float(possible[high])


def _by_moment(sizes: Floats, counts: Floats) -> Floats:
    """Bytes at each moment, [splits, ranks, moments], of stages' sizes: whole numbers, so that no sum is rounded."""
    found: Floats = np.matmul(sizes.transpose(1, 0, 2), counts).transpose(1, 0, 2)
    return found


def _sums(values: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values)])


def _padded(rows: Ints, most: int) -> Ints:
    return np.concatenate([rows, np.repeat(rows[:1], most - len(rows), axis=0)])


def places(order: OrderArrays, ends: Ints) -> tuple[Ints, Ints]:
    """First and last layers of each rank's stages, from where each stage ends: [splits, stages + 1], 0 first."""
    return ends[:, :-1][:, order.rank_stages], ends[:, 1:][:, order.rank_stages]
