"""The samples of a run, cut from the store: windows of one long text, or whole documents, packed together or alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from evenflow.errors import InputError
from evenflow.models import NOT_LEARNED
from evenflow.train.packing import Packing, alone, pack
from evenflow.train.store import TokenStore

PackingKind = Literal["stream", "whole", "padded"]
PACKINGS: tuple[PackingKind, ...] = get_args(PackingKind)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sequence, or several of a microbatch with a dimension in front.

    Attributes:
        ids: its tokens [seq].
        labels: what each position is to be, as its predecessor predicts it; NOT_LEARNED where nobody does [seq].
        positions: of each token in its document, where documents do not see each other, or in the sequence [seq].
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    positions: NDArray[np.int64]


class Sequences:
    """All sequences of a store, each at once by its number.

    Args:
        store: the tokens.
        seq_length: of a sequence, or the most that one may have.
        packing: `stream`: the documents one after another, cut where a sequence ends; `whole`: documents uncut, and
            padding where none fits any more; `padded`: each a sequence of its own, as long as it is.
        separate: whether positions start again with each document, by which models keep them from seeing each other.

    Attributes:
        is_masked: whether some labels are not learned.
        packing: as given.
        separate: as given, where several documents may be in a sequence.

    Raises:
        InputError: there is not even one sequence.
    """

    def __init__(self, store: TokenStore, seq_length: int, packing: PackingKind, separate: bool) -> None:
        self.store = store
        self.seq_length = seq_length
        self.packing = packing
        self.separate = separate and packing != "padded"
        self._packed: Packing | None = None
        if packing != "stream":
            self._packed = (pack if packing == "whole" else alone)(store.documents, store.learned, seq_length)
            if not len(self._packed):
                raise InputError("the data has no document with anything to learn; --packing stream would take it all")
        else:
            store.sequences(seq_length)
        self.is_masked = self._packed is not None or store.learned is not None

    def __len__(self) -> int:
        return len(self._packed) if self._packed is not None else self.store.sequences(self.seq_length)

    @property
    def filled(self) -> float:
        """The share of all tokens that are no padding, of sequences of `seq_length`."""
        return 1.0 if self._packed is None else self._packed.filled / self.seq_length

    def length(self, number: int) -> int:
        """Tokens of sequence `number`."""
        if self._packed is None or self.packing == "whole":
            return self.seq_length
        return int(self._packed.ends[number] - self._packed.begins[number])

    def predicted(self, number: int) -> int:
        """How many tokens of sequence `number` are learned, each from those before it, without reading it."""
        if self._packed is not None:
            first, last = self._packed.sequences[number : number + 2].tolist()
            pieces = zip(self._packed.begins[first:last].tolist(), self._packed.ends[first:last].tolist(), strict=True)
            return sum(self._count(begin + 1, end) for begin, end in pieces)
        begin = number * self.seq_length
        found = self._count(begin + 1, begin + self.seq_length)
        starts = self._starts(begin, begin + self.seq_length) if self.separate else ()
        return found - sum(self._count(start, start + 1) for start in starts)

    def _count(self, begin: int, end: int) -> int:
        """The learned tokens from one place of the store to another."""
        return end - begin if self.store.learned is None else int(np.count_nonzero(self.store.learned[begin:end]))

    def _starts(self, begin: int, end: int) -> list[int]:
        """Where in a part of the store, but at its very beginning, documents begin."""
        first, last = np.searchsorted(self.store.documents, (begin, end), side="right")
        return [start for start in self.store.documents[first:last].tolist() if start < end]

    def read(self, number: int) -> Sample:
        """Sequence `number`, counted from 0.

        Raises:
            InputError: the store holds an id that its vocabulary does not have.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"sequence {number} of {len(self)}")
        return self._window(number) if self._packed is None else self._pack(self._packed, number)

    def _window(self, number: int) -> Sample:
        begin = number * self.seq_length
        ids = self.store.ids(begin, begin + self.seq_length)
        labels = self._learned(ids, begin)
        positions = np.arange(self.seq_length)
        if self.separate:
            for start in self._starts(begin, begin + self.seq_length):
                positions[start - begin :] = np.arange(begin + self.seq_length - start)
                labels[start - begin] = NOT_LEARNED
        return Sample(ids, labels, positions)

    def _pack(self, packed: Packing, number: int) -> Sample:
        length = self.length(number)
        ids = np.zeros(length, np.int64)
        labels = np.full(length, NOT_LEARNED, np.int64)
        positions = np.arange(length)
        at = 0
        for piece in range(*packed.sequences[number : number + 2].tolist()):
            begin, end = int(packed.begins[piece]), int(packed.ends[piece])
            until = at + end - begin
            ids[at:until] = self.store.ids(begin, end)
            labels[at:until] = self._learned(ids[at:until], begin)
            labels[at] = NOT_LEARNED  # nothing of its own document is before it
            at = until
            if self.separate:  # the padding too is a document of its own
                positions[at:] = np.arange(length - at)
        return Sample(ids, labels, positions)

    def _learned(self, ids: NDArray[np.int64], begin: int) -> NDArray[np.int64]:
        if self.store.learned is None:
            return ids.copy()
        return np.where(self.store.learned[begin : begin + len(ids)] != 0, ids, NOT_LEARNED)
