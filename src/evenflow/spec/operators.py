"""What a layer computes as a function of microbatch, sequence and shards, so that nothing is traced again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Shards:
    """Over how many ranks a layer is cut: heads and widths (tp), the sequence (cp), experts (ep).

    `is_sequence_parallel`: what `tp` leaves whole (norms, residuals) is cut by the sequence (Korthikanti et al. 2022).
    """

    tp: int = 1
    cp: int = 1
    ep: int = 1
    is_sequence_parallel: bool = True


@dataclass(frozen=True, slots=True)
class Matmul:
    """`count` products of an m x k by a k x n matrix, as one rank computes them in its forward."""

    m: int
    n: int
    k: int
    count: int = 1

    @property
    def flops(self) -> int:
        """Floating-point operations of the forward."""
        return 2 * self.m * self.n * self.k * self.count


@dataclass(frozen=True, slots=True)
class Attention:
    """Scores and their product with values.

    Attributes:
        sequences: of the microbatch.
        heads: of this rank.
        queries: positions of this rank.
        keys: positions that the sequence has.
        score_dim: width of a query.
        value_dim: width of a value.
        window: keys that a query sees, None for all before it.
        is_fused: no scores go to memory (flash attention); else they are made over the whole square, and masked.
    """

    sequences: int
    heads: int
    queries: int
    keys: int
    score_dim: int
    value_dim: int
    window: int | None = None
    is_fused: bool = True

    @property
    def flops(self) -> int:
        """Floating-point operations of the forward over the whole square, as `FlopCounterMode` counts them."""
        return 2 * self.sequences * self.heads * self.queries * self.keys * (self.score_dim + self.value_dim)

    @property
    def seen_flops(self) -> float:
        """Those of the pairs that a causal query sees."""
        width = self.keys if self.window is None else min(self.window, self.keys)
        return self.flops * (width / self.keys) * (1 - width / (2 * self.keys))

    @property
    def score_bytes(self) -> int:
        """What the forward moves of scores that are not fused, in half precision.

        Their product writes them, softmax and dropout (with its mask of a byte) read and write them, and the product
        with values reads them.
        """
        return 0 if self.is_fused else 13 * self.sequences * self.heads * self.queries * self.keys


@dataclass(frozen=True, slots=True)
class Traffic:
    """Work that is bound by memory: norms, activations, residuals.

    Attributes:
        moved_bytes: bytes that its forward reads and writes.
    """

    moved_bytes: int

    @property
    def flops(self) -> int:
        """None that count."""
        return 0


LayerOperator: TypeAlias = Matmul | Attention | Traffic


@dataclass(frozen=True, slots=True)
class Work:
    """What one pass of a layer runs.

    Attributes:
        operators: products, attention, and all others by the bytes that they move.
        kernels: how many operators the host starts.
    """

    operators: tuple[LayerOperator, ...] = ()
    kernels: int = 0
