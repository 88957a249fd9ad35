"""Says which sequences a step trains on, from seed and step alone: a resumed run sees the same text."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from evenflow.train.sequences import Sample, Sequences

_WORD = 2**64 - 1


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
    """Read microbatch `index` (counted from 0) of a step's `ids`, each part as `[micro_batch_size, seq_length]`."""
    own = ids[index * micro_batch_size : (index + 1) * micro_batch_size]
    if index < 0 or len(own) != micro_batch_size:
        raise IndexError(f"{len(ids)} sequences have no microbatch {index} of {micro_batch_size}")
    samples = [sequences.read(sequence) for sequence in own]
    return Sample(
        np.stack([sample.ids for sample in samples]),
        np.stack([sample.labels for sample in samples]),
        np.stack([sample.positions for sample in samples]),
    )


@lru_cache(maxsize=2)  # a step that crosses into the next epoch needs both
def _permutation(seed: int, epoch: int, sequences: int) -> NDArray[np.int64]:
    # Sorting raw words, not `Generator.permutation`: numpy promises the stream of a bit generator for ever,
    # but not what its distributions make of it, and a resumed run may meet a newer numpy.
    words = np.random.Philox(key=np.array([seed & _WORD, epoch], dtype=np.uint64)).random_raw(sequences)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)
