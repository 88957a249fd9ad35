"""Why a rank idles: its step's wall time, less busy and optimizer, split by what it waited for.

* A compute action's gap is split at the moment when its peer finished making the tensor: before that the
  rank waited for the peer, after that for the transfer.
* A RELEASE is split likewise, at the moment when its peer posted the receive.
* NORM's gap is a reduction where the program reduces gradients; where weights are tied to other ranks', only from the
  moment when the last of those had started to add them.
* STEP's gap is split at the moment when the last rank had its norm: what follows is the reduction.
* A rank that is done before the step's end, as in an evaluation, waits for the last one.

What remains is overhead: posting sends, fetching the batch, the loop itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evenflow.program import (
    Action,
    Backward,
    Forward,
    InputBackward,
    Norm,
    Program,
    ReceiveBackward,
    ReceiveForward,
    ReduceTied,
    ReleaseBackward,
    ReleaseForward,
    Step,
    WeightBackward,
)
from evenflow.timeline.timeline import Timeline

Cause = Literal["waiting", "transfer", "reduction", "overhead"]
_CAUSES: tuple[Cause, ...] = ("waiting", "transfer", "reduction", "overhead")
_NOTHING = 1e-12  # a part of the step that is no time: where floats are subtracted from floats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Wait:
    """A rank's idle seconds before or in one of its actions.

    Attributes:
        cause: what it waited for.
        action: the action of this rank that was held up.
        peer: the rank that was waited for (None for transfer, reduction and overhead).
        peer_action: the peer's action that was waited for.
        seconds: how long.
    """

    cause: Cause
    action: Action
    peer: int | None
    peer_action: Action | None
    seconds: float


def waits(timeline: Timeline) -> tuple[tuple[Wait, ...], ...]:
    """All idle of each rank; the seconds of a rank add up to its `idle_s`."""
    idle, program = _find(timeline), timeline.program
    ranks = program.table.rank
    actions = [action for own in program.ranks for action in own]
    found: list[list[Wait]] = [[] for _ in program.ranks]
    columns = (column.tolist() for column in (idle.row, idle.cause, idle.peer_row, idle.seconds))
    for row, cause, peer_row, seconds in zip(*columns, strict=True):
        peer = int(ranks[peer_row]) if peer_row >= 0 else None
        peer_action = actions[peer_row] if peer_row >= 0 else None
        found[ranks[row]].append(Wait(_CAUSES[cause], actions[row], peer, peer_action, seconds))
    return tuple(map(tuple, found))


def idle_by_cause(timeline: Timeline) -> tuple[dict[str, float], ...]:
    """Idle seconds of each rank by cause, largest first; waiting is told apart by peer: `waiting for rank 1`."""
    idle, table = _find(timeline), timeline.program.table
    ranks = len(timeline.ranks)
    peer = np.where(idle.peer_row >= 0, table.rank[idle.peer_row], ranks)
    key = (table.rank[idle.row] * len(_CAUSES) + idle.cause) * (ranks + 1) + peer
    sums = np.bincount(key, weights=idle.seconds)
    totals: list[defaultdict[str, float]] = [defaultdict(float) for _ in range(ranks)]
    for index in np.flatnonzero(sums).tolist():
        rest, whom = divmod(index, ranks + 1)
        rank, cause = divmod(rest, len(_CAUSES))
        name = f"waiting for rank {whom}" if whom < ranks else _CAUSES[cause]
        totals[rank][name] += float(sums[index])
    return tuple(dict(sorted(own.items(), key=lambda item: -item[1])) for own in totals)


@dataclass(frozen=True, slots=True)
class _Idle:
    """All waits in columns: the row held up, the cause's place in `_CAUSES`, the row waited for (-1: none), seconds."""

    row: Ints
    cause: Ints
    peer_row: Ints
    seconds: Floats


@dataclass(frozen=True, slots=True)
class Reasons:
    """Why each row of the program's table began when it did, in columns; moments and lengths are seconds.

    Attributes:
        rank: whose row it is.
        start: when it began.
        end: when it ended.
        before: when what stands before it on its rank had ended.
        maker: the row on another rank that it waits for; -1 where it waits for none.
        until: when what it waits for was made, or for a RELEASE when its peer posted the receive.
        waited: how long it waited for that.
        rest: what then remained until it could go on: a transfer or a reduction.
        is_reduction: whether `rest` is a reduction.
        overhead: what else its rank spent before it.
    """

    rank: Ints
    start: Floats
    end: Floats
    before: Floats
    maker: Ints
    until: Floats
    waited: Floats
    rest: Floats
    is_reduction: NDArray[np.bool_]
    overhead: Floats


def reasons(timeline: Timeline) -> Reasons:
    """Why each action began when it did."""
    program = timeline.program
    table = program.table
    start = np.concatenate([np.array(own.starts, dtype=np.float64) for own in timeline.ranks])
    end = np.concatenate([np.array(own.ends, dtype=np.float64) for own in timeline.ranks])
    before = np.concatenate([[own.begin_s, *own.ends[:-1]] for own in timeline.ranks if own.ends])
    gap = np.maximum(start - before, 0.0)  # a simulated start may lie a float's last bits before the end before it
    maker = _makers(program)
    is_step, is_norm = table.is_kind(Step), table.is_kind(Norm)
    is_release = table.is_kind(ReleaseForward, ReleaseBackward)
    is_compute = table.is_kind(Forward, Backward, InputBackward, WeightBackward)
    norms = np.flatnonzero(is_norm)
    until = np.where(maker >= 0, np.where(is_release, start[maker], end[maker]), -np.inf)
    if norms.size:
        slowest = int(norms[np.argmax(end[norms])])
        maker = np.where(is_step, slowest, maker)
        until = np.where(is_step, end[slowest], until)
    for row, partners in _tied_partners(program, norms):
        maker[row] = partners[np.argmax(end[partners])]
        until[row] = end[maker[row]]
    has_maker = maker >= 0
    reduces = bool(program.reduces or program.tied_apart)
    # What can be split lies before the action, or for a RELEASE inside it; all else is overhead, as is what taking the
    # action is known to have cost before it waited.
    takes_time = is_compute | is_step | is_norm
    whole = np.where(is_release, end - start, gap)
    taking = np.minimum(whole, timeline.overhead_s)
    span = whole - taking
    begin = np.where(is_release, start, before) + taking
    waited = np.where(has_maker, np.minimum(np.maximum(until - begin, 0.0), span), 0.0)
    is_split = has_maker | (is_norm & reduces)
    rest = np.where(is_split, span - waited, 0.0)
    overhead = taking + np.where(is_split, 0.0, span) + np.where(is_release, gap, 0.0)
    overhead = np.where(takes_time | is_release, overhead, gap + end - start)
    return Reasons(table.rank, start, end, before, maker, until, waited, rest, is_step | is_norm, overhead)


def _find(timeline: Timeline) -> _Idle:
    why, table = reasons(timeline), timeline.program.table
    rows, start, end = np.arange(len(why.start)), why.start, why.end
    causes = np.where(why.is_reduction, _CAUSES.index("reduction"), _CAUSES.index("transfer"))
    nobody = np.full_like(rows, -1)
    ends = np.unique(table.begins)[1:] - 1  # each rank's last row
    tail = np.array([own.end_s - own.ends[-1] for own in timeline.ranks if own.ends])
    parts = (
        _Idle(rows, np.full_like(rows, _CAUSES.index("waiting")), why.maker, why.waited),
        _Idle(rows, causes, nobody, why.rest),
        _Idle(rows, np.full_like(rows, _CAUSES.index("overhead")), nobody, why.overhead),
        _Idle(ends, np.full_like(ends, _CAUSES.index("waiting")), np.full_like(ends, ends[np.argmax(end[ends])]), tail),
    )
    columns = [np.concatenate([getattr(part, name) for part in parts]) for name in _Idle.__slots__]
    order = np.argsort(columns[0], kind="stable")
    keep = order[np.abs(columns[3][order]) > _NOTHING * (end.max() - start.min())]
    return _Idle(*(column[keep] for column in columns))


def _tied_partners(program: Program, norms: Ints) -> Iterator[tuple[int, Ints]]:
    """For each NORM of a rank with tied weights, the REDUCE_TIEDs of the other ranks that share them."""
    table = program.table
    started = np.flatnonzero(table.is_kind(ReduceTied))
    for row in norms.tolist() if started.size else ():
        rank = table.rank[row]
        groups = [group for group in program.tied_apart if any(program.stage_rank[stage] == rank for stage in group)]
        partners = started[np.isin(table.stage[started], list(chain(*groups))) & (table.rank[started] != rank)]
        if partners.size:
            yield row, partners


def _makers(program: Program) -> Ints:
    """For each row the row on another rank that it waits for; -1 where it waits for none.

    For a compute action that is what makes its input, for a RELEASE the receive without which a send never completes.
    """
    table, shape = program.table, (program.stages, program.microbatches)
    rank = np.array(program.stage_rank)
    forward, gradient = table.rows(Forward, *shape), np.full(shape, -1)
    for kind in (Backward, InputBackward):
        gradient = np.maximum(gradient, table.rows(kind, *shape))
    maker = np.full(len(table.kind), -1, dtype=np.int64)

    def set_maker(rows: Ints, makers: Ints, apart: NDArray[np.bool_]) -> None:
        known = (rows >= 0) & (makers >= 0) & apart[:, None]
        maker[rows[known]] = makers[known]

    apart = rank[1:] != rank[:-1]
    set_maker(forward[1:], forward[:-1], apart)
    for kind in (Backward, InputBackward):
        set_maker(table.rows(kind, *shape)[:-1], gradient[1:], apart)
    set_maker(table.rows(ReleaseForward, *shape)[:-1], table.rows(ReceiveForward, *shape)[1:], apart)
    set_maker(table.rows(ReleaseBackward, *shape)[1:], table.rows(ReceiveBackward, *shape)[:-1], apart)
    return maker
