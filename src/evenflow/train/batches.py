"""What the executor is fed: one replica's microbatches, each read from the store when it is asked for; none is kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evenflow.models import NOT_LEARNED, Microbatch
from evenflow.train.sampler import lengths, microbatch
from evenflow.train.sequences import Sequences


class Batch:
    """One replica's share of a global batch, which is a function of its samples, whatever the layout.

    Args:
        sequences: what samples are cut from.
        samples: of the global batch, those of all replicas one after another.
        size: sequences of a microbatch.
        replica: this one's number.
        replicas: how many there are.
        device: where microbatches go.
        counted: how many of the samples are learned from; the others only fill the last microbatches.

    Attributes:
        predicted: the tokens that the whole global batch predicts, the same on every replica.
        tokens: those that all replicas compute, padding included.
        lengths: tokens of a sequence of each of this replica's microbatches.
    """

    def __init__(
        self,
        sequences: Sequences,
        samples: Sequence[int],
        size: int,
        replica: int,
        replicas: int,
        device: torch.device,
        counted: int | None = None,
    ) -> None:
        self._sequences = sequences
        self._samples = tuple(samples)
        self._size = size
        self._device = device
        self._counted = len(self._samples) if counted is None else counted
        own = len(self._samples) // (size * replicas)
        self._first = replica * own
        longest = lengths(sequences, self._samples, size)
        self.lengths = longest[self._first : self._first + own]
        self.tokens = size * sum(longest)
        self.predicted = sum(sequences.predicted(sample) for sample in self._samples[: self._counted])
        self._read: set[int] = set()

    def __call__(self, index: int) -> Microbatch:
        """Microbatch `index` of this replica, [size, the longest of its sequences]."""
        number = self._first + index
        rows = microbatch(self._sequences, self._samples, number, self._size)
        self._read.add(number)
        labels = positions = None
        filling = max((number + 1) * self._size - self._counted, 0)  # rows at its end that nobody learns from
        if self._sequences.is_masked or self._sequences.separate or filling:
            rows.labels[max(self._size - filling, 0) :] = NOT_LEARNED
            labels = torch.from_numpy(rows.labels)
        if self._sequences.separate:
            positions = torch.from_numpy(rows.positions)
        return Microbatch(torch.from_numpy(rows.ids), labels, positions).to(self._device)

    def samples(self) -> list[int]:
        """What was read, in the order of the batch."""
        size = self._size
        return [
            sample for number in sorted(self._read) for sample in self._samples[number * size : (number + 1) * size]
        ]
