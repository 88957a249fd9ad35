"""A schedule's order as arrays: when each compute action can run after which, and how much each rank has in flight.

A search asks the same order for thousands of splits, so the order is walked once: actions are put into levels, each of
which waits only for earlier ones, and a step of any number of splits is then a pass over levels (`pace.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from evenflow.program import InputBackward, WeightBackward, compute_order
from evenflow.program.actions import Backward, Compute, Forward
from evenflow.program.schedules.groups import groups_of
from evenflow.search.layouts.layout import stage_ranks

Ints = NDArray[np.int64]
_KINDS: dict[type[Compute], int] = {Forward: 0, Backward: 1, InputBackward: 2, WeightBackward: 3}
_F, _B, _I, _W = range(4)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a rank has in flight at the moments when it may hold most: [moments, stages of a rank]."""

    saved: Ints
    pending: Ints


@dataclass(frozen=True, slots=True)
class OrderArrays:
    """One order.

    Attributes:
        ranks, stages, microbatches: its size.
        rank_stages: stages of each rank, [ranks, stages of a rank].
        levels: where each level begins and ends among the nodes; the first `ranks` nodes are the ranks' begins.
        before: the node before each on its rank.
        needs: the node whose tensor it needs; its own `before` where there is none.
        edge: which lag the tensor has: stage s to s + 1 is s + 1, back is stages + s + 1; 0 for none.
        cost: which seconds it takes: kind x stages + stage.
        last: for each stage, the node after which all its gradients are made.
        ends: for each rank, its last node.
        counts: for each rank, what it has in flight.
    """

    ranks: int
    stages: int
    microbatches: int
    rank_stages: Ints
    levels: tuple[tuple[int, int], ...]
    before: Ints
    needs: Ints
    edge: Ints
    cost: Ints
    last: Ints
    ends: Ints
    counts: tuple[Counts, ...]


@lru_cache(maxsize=512)
def order_arrays(schedule: str, ranks: int, each: int, microbatches: int) -> OrderArrays:
    """The arrays of a named schedule's order."""
    codes = _codes(schedule, ranks, each, microbatches)
    stages = ranks * each
    stage_rank = stage_ranks(schedule, ranks, each)
    held = np.array([[stage for stage, owner in enumerate(stage_rank) if owner == rank] for rank in range(ranks)])
    size = stages * microbatches
    level = _levels(codes, stages, microbatches)
    ordered = np.concatenate([np.asarray(own, dtype=np.int64) for own in codes])
    by_level = np.argsort(level[ordered], kind="stable")
    node = np.full(4 * size, -1, dtype=np.int64)
    node[ordered[by_level]] = np.arange(len(ordered)) + ranks
    previous = np.empty(len(ordered), dtype=np.int64)
    at = 0
    for rank, actions in enumerate(codes):
        previous[at] = rank
        previous[at + 1 : at + len(actions)] = node[np.asarray(actions[:-1], dtype=np.int64)]
        at += len(actions)
    before = previous[by_level]
    code = ordered[by_level]
    kind, rest = np.divmod(code, size)
    stage, _ = np.divmod(rest, microbatches)
    needs, edge = _needs(code, kind, stage, before, node, np.array(stage_rank), size, microbatches)
    last = np.empty(stages, dtype=np.int64)
    final = np.where(kind == _F, -1, np.arange(len(code)) + ranks)
    for number in range(stages):
        last[number] = final[stage == number].max()
    ends = np.array([node[own[-1]] for own in codes])
    bounds = np.flatnonzero(np.diff(level[code])) + 1 + ranks
    cuts = [ranks, *bounds.tolist(), ranks + len(code)]
    begins = np.arange(ranks)
    return OrderArrays(
        ranks, stages, microbatches, held, tuple(pairwise(cuts)), np.concatenate([begins, before]),
        np.concatenate([begins, needs]), np.concatenate([np.zeros(ranks, dtype=np.int64), edge]),
        np.concatenate([np.zeros(ranks, dtype=np.int64), kind * stages + stage]), last, ends,
        tuple(_counts(np.asarray(own, dtype=np.int64), held[rank], size, microbatches)
              for rank, own in enumerate(codes)),
    )  # fmt: skip


def _codes(schedule: str, ranks: int, each: int, m: int) -> list[list[int]]:
    """Each rank's actions as kind x stages x microbatches + stage x microbatches + microbatch."""
    stages, size = ranks * each, ranks * each * m
    if schedule == "1f1b" and each == 1:
        return [_alternate([r * m + k for k in range(m)], [size + r * m + k for k in range(m)], min(ranks - r, m))
                for r in range(ranks)]  # fmt: skip
    if schedule == "interleaved":
        groups = groups_of(m, ranks)
        found = []
        for rank in range(ranks):
            held = range(rank, stages, ranks)
            forwards = [stage * m + k for group in groups for stage in held for k in group]
            backwards = [size + stage * m + k for group in groups for stage in reversed(held) for k in group]
            warm = (each - 1) * len(groups[0]) + 2 * (ranks - 1 - rank) + 1
            found.append(_alternate(forwards, backwards, min(warm, len(forwards))))
        return found
    order = compute_order(schedule, stage_ranks(schedule, ranks, each), m)
    return [[_KINDS[type(own)] * size + own.stage * m + own.microbatch for own in actions] for actions in order]


def _alternate(forwards: list[int], backwards: list[int], warm: int) -> list[int]:
    """So many forwards, then backwards and forwards in turn."""
    middle = [own for pair in zip(backwards, forwards[warm:], strict=False) for own in pair]
    return [*forwards[:warm], *middle, *backwards[len(forwards) - warm :]]


def _levels(codes: list[list[int]], stages: int, m: int) -> Ints:
    """For each action's code, one more than the latest of what it waits for."""
    size = stages * m
    level = [-1] * (4 * size)
    at, now = [0] * len(codes), [0] * len(codes)
    left = sum(map(len, codes))
    last_stage = size - m
    while left:
        moved = 0
        for rank, own in enumerate(codes):
            position, latest, end = at[rank], now[rank], len(own)
            while position < end:
                code = own[position]
                kind, place = divmod(code, size)
                if kind == 0:
                    need = level[place - m] if place >= m else 0
                elif kind == 3 or place >= last_stage:
                    need = 0
                else:
                    need = level[size + place + m]
                    if need < 0:
                        need = level[2 * size + place + m]
                if need < 0:
                    break
                latest = (need if need > latest else latest) + 1
                level[code] = latest
                position += 1
            moved += position - at[rank]
            at[rank], now[rank] = position, latest
        assert moved, "the order waits for itself"
        left -= moved
    return np.array(level, dtype=np.int64)


def _needs(
    code: Ints, kind: Ints, stage: Ints, before: Ints, node: Ints, stage_rank: Ints, size: int, m: int
) -> tuple[Ints, Ints]:
    """The node whose tensor each action needs, and the lag with which it comes."""
    stages = len(stage_rank)
    place = code % size
    forward = (kind == _F) & (stage > 0)
    backward = ((kind == _B) | (kind == _I)) & (stage < stages - 1)
    needs, edge = before.copy(), np.zeros(len(code), dtype=np.int64)
    needs[forward] = node[place[forward] - m]
    later = place[backward] + m
    whole = node[size + later]
    needs[backward] = np.where(whole >= 0, whole, node[2 * size + later])
    apart_before = stage_rank[stage] != stage_rank[np.maximum(stage - 1, 0)]
    apart_after = stage_rank[stage] != stage_rank[np.minimum(stage + 1, stages - 1)]
    edge[forward & apart_before] = stage[forward & apart_before]
    edge[backward & apart_after] = stages + stage[backward & apart_after] + 1
    return needs, edge


def _counts(codes: Ints, held: Ints, size: int, m: int) -> Counts:
    """What a rank has in flight, at the moments that may be its fullest."""
    kind, rest = np.divmod(codes, size)
    stage = rest // m
    own = stage[:, None] == held[None, :]
    saved_change = np.where(kind == _F, 1, np.where(kind == _W, 0, -1))
    pending_change = np.where(kind == _I, 1, np.where(kind == _W, -1, 0))
    saved = np.cumsum(own * saved_change[:, None], axis=0)
    pending = np.cumsum(own * pending_change[:, None], axis=0)
    if not pending.any():  # fullest where a forward is followed by a backward
        peaks = (kind == _F) & np.append(kind[1:] != _F, True)
        rows = np.unique(saved[peaks], axis=0)
        return _only_saved(_largest(rows) if len(held) == 1 else rows)
    # What an action is about to let go of is still held while it runs.
    rows = np.unique(np.concatenate([saved - np.minimum(own * saved_change[:, None], 0), pending], axis=1), axis=0)
    rows = _largest(rows)
    return Counts(rows[:, : len(held)], rows[:, len(held) :])


def _only_saved(rows: Ints) -> Counts:
    return Counts(rows, np.zeros_like(rows))


def _largest(rows: Ints) -> Ints:
    """Those of which none other has as much or more of everything."""
    if rows.shape[1] == 1:
        return rows[-1:]
    if rows.shape[1] == 2:  # sorted by the first column, so what comes later has as much of it or more
        most = np.maximum.accumulate(rows[::-1, 1])[::-1]
        alone = np.append(rows[:-1, 1] > most[1:], True)
        flat: Ints = rows[alone]
        return flat
    keep = [
        not ((rows >= row).all(axis=1) & (rows > row).any(axis=1)).any() for row in rows
    ]  # fmt: skip
    kept: Ints = rows[np.array(keep)]
    return kept
