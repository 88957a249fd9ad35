"""Which documents share a sequence, where none may be cut: best fit, longest first, the same for everyone who asks."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Pieces of documents, sequence after sequence.

    Attributes:
        begins: where in the store each piece begins.
        ends: where it ends.
        sequences: the first piece of each sequence, and the number of pieces.
    """

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    sequences: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sequences) - 1

    @property
    def filled(self) -> float:
        """Which share of the sequences' tokens, padding included, are of documents, for sequences of one token."""
        return float((self.ends - self.begins).sum()) / max(len(self), 1)


def pack(documents: NDArray[np.int64], learned: NDArray[np.uint8] | None, seq_length: int) -> Packing:
    """Put documents into sequences of `seq_length` tokens by best-fit decreasing (Johnson et al. 1974, section 2).

    A document longer than a sequence is cut into pieces of a sequence each. Pieces with nothing to learn are left out:
    what is learned from a token on, its second one.

    Args:
        documents: where each document begins in the store, and where the last one ends.
        learned: for each token whether it is learned; None where all are.
        seq_length: tokens of a sequence.
    """
    begins, ends = _worth(documents, learned, seq_length)
    lengths = ends - begins
    bins = _best_fit(lengths[order := np.argsort(-lengths, kind="stable")], seq_length)
    # Sequences in the order of their first pieces, and pieces within one in the order of the documents.
    first = np.full(int(bins.max(initial=-1)) + 1, len(lengths), np.int64)
    np.minimum.at(first, bins, order)
    places = np.lexsort((order, first[bins]))
    chosen, owners = order[places], bins[places]
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    return Packing(begins[chosen], ends[chosen], np.append(starts, len(chosen)).astype(np.int64))


def alone(documents: NDArray[np.int64], learned: NDArray[np.uint8] | None, seq_length: int) -> Packing:
    """A sequence for each document, in their order; cut and left out as by `pack`."""
    begins, ends = _worth(documents, learned, seq_length)
    return Packing(begins, ends, np.arange(len(begins) + 1))


def _worth(
    documents: NDArray[np.int64], learned: NDArray[np.uint8] | None, seq_length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Begin and end of each piece with something to learn."""
    begins, ends = _pieces(documents, seq_length)
    worth = ends - begins >= 2  # the first token is predicted from nothing
    if learned is not None:
        sums = np.concatenate([[0], np.cumsum(learned, dtype=np.int64)])
        worth &= sums[ends] - sums[np.minimum(begins + 1, ends)] > 0
    return begins[worth], ends[worth]


def _pieces(documents: NDArray[np.int64], seq_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Begin and end of each document, of those too long in pieces."""
    starts, ends = np.asarray(documents[:-1]), np.asarray(documents[1:])
    counts = np.maximum(-(-(ends - starts) // seq_length), 1)
    owner = np.repeat(np.arange(len(starts)), counts)
    index = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = starts[owner] + index * seq_length
    return begins, np.minimum(begins + seq_length, ends[owner])


def _best_fit(lengths: NDArray[np.int64], seq_length: int) -> NDArray[np.int64]:
    """The sequence of each piece: the fullest that has room for it, else a new one."""
    bins = np.empty(len(lengths), np.int64)
    by_room: dict[int, list[int]] = {}  # the sequences that have so much room left
    rooms: list[int] = []  # those that there are, in order
    count = 0
    for piece, length in enumerate(lengths.tolist()):
        place = bisect_left(rooms, length)
        if place == len(rooms):
            own, room = count, seq_length
            count += 1
        else:
            room = rooms[place]
            own = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        bins[piece] = own
        left = room - length
        if left:
            if left not in by_room:
                by_room[left] = []
                insort(rooms, left)
            by_room[left].append(own)
    return bins
