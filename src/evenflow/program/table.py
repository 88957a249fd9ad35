"""A program as columns of numbers, so that a rule about a million actions is one comparison of two arrays.

All ranks' actions stand one after another in one table; an action's place in it is its *row*.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray

from evenflow.errors import ProgramError
from evenflow.program.actions import (
    Action,
    Backward,
    Forward,
    InputBackward,
    Norm,
    ReceiveBackward,
    ReceiveForward,
    ReduceGrad,
    ReduceTied,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    Step,
    WeightBackward,
)

Ints = NDArray[np.int64]

# The position in this tuple is the number of the kind in `Table.kind`.
KINDS: tuple[type[Action], ...] = (
    Forward,
    Backward,
    InputBackward,
    WeightBackward,
    SendForward,
    ReceiveForward,
    SendBackward,
    ReceiveBackward,
    ReleaseForward,
    ReleaseBackward,
    ReduceTied,
    ReduceGrad,
    Norm,
    Step,
)
CODES: dict[type[Action], int] = {kind: code for code, kind in enumerate(KINDS)}


@dataclass(frozen=True, slots=True)
class Table:
    """Columns over all rows.

    Attributes:
        kind: the action's number in `KINDS`.
        stage: its stage; -1 where it has none.
        microbatch: its microbatch; -1 where it has none.
        rank: whose action it is.
        begins: the row at which each rank begins, and the number of rows last; [ranks + 1].
    """

    kind: Ints
    stage: Ints
    microbatch: Ints
    rank: Ints
    begins: Ints

    def is_kind(self, *kinds: type[Action]) -> NDArray[np.bool_]:
        """Which rows are of one of these kinds."""
        wanted = np.zeros(len(KINDS), dtype=bool)
        wanted[[CODES[kind] for kind in kinds]] = True
        return wanted[self.kind]

    def rows(self, kind: type[Action], stages: int, microbatches: int) -> Ints:
        """The row of each (stage, microbatch)'s action of one kind, of several the first; -1 where there is none.

        Returns:
            Rows [stages, microbatches].
        """
        found = np.full((stages, microbatches), -1, dtype=np.int64)
        own = np.flatnonzero(self.kind == CODES[kind])[::-1]
        found[self.stage[own], self.microbatch[own]] = own
        return found

    def spans(self) -> Iterator[slice]:
        """Each rank's rows."""
        for begin, end in zip(self.begins[:-1].tolist(), self.begins[1:].tolist(), strict=True):
            yield slice(begin, end)


def make_table(ranks: tuple[tuple[Action, ...], ...]) -> Table:
    """Read all ranks' actions into columns.

    Raises:
        ProgramError: a number does not fit into a column.
    """
    lengths = list(map(len, ranks))
    actions = tuple(chain.from_iterable(ranks))
    return Table(
        kind=_column(map(CODES.__getitem__, map(type, actions)), len(actions)),
        stage=_column(map(getattr, actions, repeat("stage"), repeat(-1)), len(actions)),
        microbatch=_column(map(getattr, actions, repeat("microbatch"), repeat(-1)), len(actions)),
        rank=np.repeat(np.arange(len(ranks)), lengths),
        begins=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
    )


def _column(values: Iterator[int], rows: int) -> Ints:
    try:
        return np.fromiter(values, dtype=np.int64, count=rows)
    except OverflowError:
        raise ProgramError("a stage or microbatch is numbered beyond what any program has") from None
