"""Says which sequences a step trains on, from seed and step alone: a resumed run sees the same text."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from evenflow.errors import InputError
from evenflow.models import NOT_LEARNED
from evenflow.train.sequences import Sample, Sequences

_WORD = 2**64 - 1
_HELD_OUT = _WORD  # an epoch that no run comes to, whose order says what is held out


def sample_ids(seed: int, step: int, global_batch_size: int, sequences: int) -> tuple[int, ...]:
    """The sequences of step `step`: each epoch is a fresh permutation, and steps walk on through the epochs.

    With 5 sequences and 2 of them a step, where epoch 0 is `3 0 4 1 2` and epoch 1 is `1 4 0 3 2`:

        step      1    2    3    4    5
        ids      3 0  4 1  2 1  4 0  3 2

    Args:
        seed: the run's seed.
        step: the optimizer step, counted from 1.
        global_batch_size: how many sequences a step trains on; more than there are is fine.
        sequences: how many there are.
    """
    if step < 1 or global_batch_size < 1 or sequences < 1:
        raise ValueError(f"step {step}, batch {global_batch_size} and sequences {sequences} must start at 1")
    position = (step - 1) * global_batch_size
    end = position + global_batch_size
    ids: list[int] = []
    while position < end:
        epoch, first = divmod(position, sequences)
        taken = min(sequences - first, end - position)
        ids.extend(_permutation(seed, epoch, sequences)[first : first + taken].tolist())
        position += taken
    return tuple(ids)


def microbatch(sequences: Sequences, ids: tuple[int, ...], index: int, micro_batch_size: int) -> Sample:
    """Read microbatch `index` (counted from 0) of a step's `ids`, each part as `[micro_batch_size, longest sequence]`.

    Shorter sequences are padded at their end, with tokens that nobody learns.
    """
    own = ids[index * micro_batch_size : (index + 1) * micro_batch_size]
    if index < 0 or len(own) != micro_batch_size:
        raise IndexError(f"{len(ids)} sequences have no microbatch {index} of {micro_batch_size}")
    longest = max(sequences.length(sequence) for sequence in own)
    samples = [_padded(sequences.read(sequence), longest) for sequence in own]
    return Sample(
        np.stack([sample.ids for sample in samples]),
        np.stack([sample.labels for sample in samples]),
        np.stack([sample.positions for sample in samples]),
    )


def lengths(sequences: Sequences, ids: tuple[int, ...], micro_batch_size: int) -> tuple[int, ...]:
    """The longest sequence of each microbatch of a step's `ids`: how long it is on every rank, before it is read."""
    own = [sequences.length(sequence) for sequence in ids]
    return tuple(max(own[at : at + micro_batch_size]) for at in range(0, len(own), micro_batch_size))


def step_samples(seed: int, step: int, global_batch_size: int, trained: NDArray[np.int64]) -> tuple[int, ...]:
    """The samples of a step, of those that are `trained` on."""
    return tuple(trained[list(sample_ids(seed, step, global_batch_size, len(trained)))].tolist())


def hold_out(seed: int, sequences: int, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The sequences to train on and those held out of it, each in order: drawn by seed, and at least one of either.

    Raises:
        InputError: there is only one sequence.
    """
    if sequences < 2:
        raise InputError("the data makes one sequence, so none can be held out of it; --eval-data, or more data, would")
    count = min(max(round(share * sequences), 1), sequences - 1)
    drawn = _permutation(seed, _HELD_OUT, sequences)
    return np.sort(drawn[count:]), np.sort(drawn[:count])


def _padded(sample: Sample, length: int) -> Sample:
    own = len(sample.ids)
    if own == length:
        return sample
    return Sample(
        np.concatenate([sample.ids, np.zeros(length - own, np.int64)]),
        np.concatenate([sample.labels, np.full(length - own, NOT_LEARNED, np.int64)]),
        np.arange(length),  # what is padded is one document
    )


@lru_cache(maxsize=2)  # a step that crosses into the next epoch needs both
def _permutation(seed: int, epoch: int, sequences: int) -> NDArray[np.int64]:
    # Sorting raw words, not `Generator.permutation`: numpy promises the stream of a bit generator for ever,
    # but not what its distributions make of it, and a resumed run may meet a newer numpy.
    words = np.random.Philox(key=np.array([seed & _WORD, epoch], dtype=np.uint64)).random_raw(sequences)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)
