"""How much is trained in one step: the global batch and how it falls into microbatches."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from evenflow.errors import InputError

MOST_MICROBATCHES = 100_000  # a program names each of them
# What commands take where a user says nothing.
DEFAULT_GLOBAL_BATCH_SIZE = 16
DEFAULT_SEQ_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work: `global_batch_size` sequences of `seq_length` tokens, `micro_batch_size` at a time.

    Each of the `replicas` has an equal part of the sequences.

    Raises:
        InputError: a size is below one, or replicas and microbatch do not divide the global batch.
    """

    global_batch_size: int
    micro_batch_size: int
    seq_length: int
    replicas: int = 1

    def __post_init__(self) -> None:
        if min(self.global_batch_size, self.micro_batch_size, self.replicas) < 1:
            raise InputError("batch sizes start at 1")
        if self.seq_length < 2:
            raise InputError(
                f"--seq-length {self.seq_length}: a sequence needs at least 2 tokens: one to read and one to predict"
            )
        if self.global_batch_size % self.replicas:
            raise InputError(
                f"--global-batch-size: a global batch of {self.global_batch_size} does not divide over {self.replicas} "
                f"replicas (--dp); {_nearest(self.global_batch_size, self.replicas)} would do"
            )
        own = self.global_batch_size // self.replicas
        if own % self.micro_batch_size and self.replicas > 1:
            raise InputError(
                f"--global-batch-size: a global batch of {self.global_batch_size} leaves {own} sequences to each of "
                f"{self.replicas} replicas (--dp), which do not divide into microbatches of {self.micro_batch_size}; "
                f"{_listed(divisors(own))} would do as --micro-batch-size"
            )
        if self.global_batch_size % self.micro_batch_size:
            raise InputError(
                f"--global-batch-size: a global batch of {self.global_batch_size} does not divide into microbatches of "
                f"{self.micro_batch_size}; {_listed(divisors(self.global_batch_size))} would do as --micro-batch-size"
            )

        if self.microbatches > MOST_MICROBATCHES:
            raise InputError(
                f"{self.microbatches} microbatches in a step are too many; {MOST_MICROBATCHES} would be the most, "
                "so a larger --micro-batch-size or a smaller --global-batch-size would do"
            )

    @property
    def microbatches(self) -> int:
        """Microbatches of one step, for each replica."""
        return self.global_batch_size // (self.micro_batch_size * self.replicas)

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.global_batch_size * self.seq_length


def divisors(number: int) -> tuple[int, ...]:
    """All divisors of `number`, smallest first."""
    small = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    return tuple(sorted({*small, *(number // divisor for divisor in small)}))


def default_micro_batch_size(global_batch_size: int, pipeline_ranks: int) -> int:
    """The largest microbatch that leaves four microbatches for each pipeline rank, or as many as there are.

    Four for each rank keeps 1F1B's idle share, (p-1)/(m+p-1), under a fifth, while larger microbatches
    keep matrix products efficient.
    """
    wanted = min(global_batch_size, 4 * pipeline_ranks)
    return max(size for size in divisors(global_batch_size) if global_batch_size // size >= wanted)


def _nearest(number: int, by: int) -> str:
    below = number // by * by
    return f"{below} or {below + by}" if below else f"{by}"


def _listed(numbers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown}, ..." if len(numbers) > 8 else shown
