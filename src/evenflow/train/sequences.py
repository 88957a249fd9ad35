"""The samples of a run, cut from the store: windows of one long text, or whole documents packed together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from evenflow.errors import InputError
from evenflow.train.packing import Packing, pack
from evenflow.train.store import TokenStore

PackingKind = Literal["stream", "whole"]
PACKINGS: tuple[PackingKind, ...] = get_args(PackingKind)
NOT_LEARNED = -100  # a label that no loss counts, as in transformers


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
        seq_length: of a sequence.
        packing: `stream`: the documents one after another, cut where a sequence ends; `whole`: documents uncut, and
            padding where none fits any more.
        separate: whether positions start again with each document, by which models keep them from seeing each other.

    Attributes:
        is_masked: whether some labels are not learned.
        packing: as given.
        separate: as given.

    Raises:
        InputError: there is not even one sequence.
    """

    def __init__(self, store: TokenStore, seq_length: int, packing: PackingKind, separate: bool) -> None:
        self.store = store
        self.seq_length = seq_length
        self.packing = packing
        self.separate = separate
        self._packed: Packing | None = None
        if packing == "whole":
            self._packed = pack(store.documents, store.learned, seq_length)
            if not len(self._packed):
                raise InputError("the data has no document with anything to learn; --packing stream would take it all")
        else:
            store.sequences(seq_length)
        self.is_masked = self._packed is not None or store.learned is not None

    def __len__(self) -> int:
        return len(self._packed) if self._packed is not None else self.store.sequences(self.seq_length)

    @property
    def filled(self) -> float:
        """The share of all tokens that are no padding."""
        return 1.0 if self._packed is None else self._packed.filled / self.seq_length

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
            first, last = np.searchsorted(self.store.documents, (begin, begin + self.seq_length), side="right")
            for start in self.store.documents[first:last] - begin:
                if start < self.seq_length:
                    positions[start:] = np.arange(self.seq_length - start)
                    labels[start] = NOT_LEARNED
        return Sample(ids, labels, positions)

    def _pack(self, packed: Packing, number: int) -> Sample:
        ids = np.zeros(self.seq_length, np.int64)
        labels = np.full(self.seq_length, NOT_LEARNED, np.int64)
        positions = np.arange(self.seq_length)
        at = 0
        for piece in range(*packed.sequences[number : number + 2].tolist()):
            begin, end = int(packed.begins[piece]), int(packed.ends[piece])
            until = at + end - begin
            ids[at:until] = self.store.ids(begin, end)
            labels[at:until] = self._learned(ids[at:until], begin)
            labels[at] = NOT_LEARNED  # nothing of its own document is before it
            at = until
            if self.separate:  # the padding too is a document of its own
                positions[at:] = np.arange(self.seq_length - at)
        return Sample(ids, labels, positions)

    def _learned(self, ids: NDArray[np.int64], begin: int) -> NDArray[np.int64]:
        if self.store.learned is None:
            return ids.copy()
        return np.where(self.store.learned[begin : begin + len(ids)] != 0, ids, NOT_LEARNED)
