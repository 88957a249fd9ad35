"""How hidden states lie where they enter a block, and how they travel: always as [batch, seq, width].

Most models hand [batch, seq, hidden] to their blocks. Some put the sequence first, flatten the tokens, or have several
streams of hidden states; their other dims travel as a part of the width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """The dims of hidden states inside a model.

    Attributes:
        batch: which dim is the batch.
        seq: which one is the sequence; that of the batch where both are one dim, the batch outside.
        rest: the sizes of the others; empty for one of any size.
    """

    batch: int
    seq: int
    rest: tuple[int, ...]

    @property
    def width(self) -> int:
        """Numbers for each token."""
        width = 1
        for size in self.rest:
            width *= size
        return width

    def travelling(self, hidden: Tensor, batch: int) -> Tensor:
        """Hidden states as they travel, [batch, seq, width]."""
        if self._is_plain:
            return hidden
        if self.batch == self.seq:
            hidden = hidden.unflatten(self.batch, (batch, -1))
            return hidden.movedim((self.batch, self.batch + 1), (0, 1)).flatten(2)
        return hidden.movedim((self.batch, self.seq), (0, 1)).flatten(2)

    def entering(self, hidden: Tensor) -> Tensor:
        """Hidden states as a block takes them."""
        if self._is_plain:
            return hidden
        hidden = hidden.unflatten(2, self.rest)
        if self.batch == self.seq:
            return hidden.movedim((0, 1), (self.batch, self.batch + 1)).flatten(self.batch, self.batch + 1)
        return hidden.movedim((0, 1), (self.batch, self.seq))

    @property
    def _is_plain(self) -> bool:
        return self.batch == 0 and self.seq == 1 and len(self.rest) < 2


def layout_of(shape: tuple[int, ...], tokens: tuple[int, int]) -> Layout | None:
    """The layout of hidden states of `shape` for a microbatch of `tokens` (batch, seq); None where it has none."""
    batch, seq = tokens
    if batch in shape and seq in shape:
        at = shape.index(batch), shape.index(seq)
    elif batch * seq in shape:
        at = shape.index(batch * seq), shape.index(batch * seq)
    else:
        return None
    rest = tuple(size for dim, size in enumerate(shape) if dim not in at)
    return Layout(*at, rest) if rest else None
