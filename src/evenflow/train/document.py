"""One document of the data: its text, and which of it is to be learned."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """A text to train on.

    Attributes:
        text: all that the model reads.
        learned: begin and end of each run of characters that it is to predict; None for all of it.
        is_closed: whether the text already ends as a document ends, so that nothing is put after it.
    """

    text: str
    learned: tuple[tuple[int, int], ...] | None = None
    is_closed: bool = False
