"""What an export is: the files of another trainer, and what has to be said beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from evenflow.plan import Plan

Split = tuple[tuple[int, ...], ...]
"""The layers of each stage, in the model's order."""


@dataclass(frozen=True, slots=True)
class Export:
    """A plan as another trainer's own configuration.

    Attributes:
        target: which trainer.
        files: text by file name; the first one is what the trainer is started with.
        notes: what the trainer does otherwise than the plan says, or what it has to be told beside these files; one
            line each.
    """

    target: str
    files: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A trainer that plans are exported to.

    Attributes:
        title: what people call it.
        make: the export of a plan; raises ImpossibleError where the trainer cannot express it.
        read: the split that an export's files say, by the trainer's own rules, and the rank of each stage.
    """

    title: str
    make: Callable[[Plan], Export]
    read: Callable[[Mapping[str, str]], tuple[Split, tuple[int, ...]]]
