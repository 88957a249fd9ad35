"""What a training run tells whoever watches it; the command line draws it, others may pass their own."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from evenflow.files import StepMetrics
from evenflow.plan import Plan
from evenflow.spec import Model


class Progress(Protocol):
    """Hears of a run as it goes."""

    def said(self, text: str) -> None:
        """One line about what happens now."""

    def tokenised(self, done: int, total: int, tokens: int) -> None:
        """Of `total` bytes or rows of data `done` are tokens now, `tokens` of them."""

    def planned(self, plan: Plan, model: Model) -> None:
        """The plan that will be run."""

    def stepped(self, metrics: StepMetrics, steps: int) -> None:
        """One step of `steps` is done."""

    def saved(self, checkpoint: Path, write_s: float, hash_s: float) -> None:
        """A checkpoint was published while the run goes on; writing took its slowest rank so long, hashing all."""

    def closed(self) -> None:
        """No more will come: the run ended, well or not."""


class Silent:
    """Nobody watches."""

    def said(self, text: str) -> None:
        """Nothing."""

    def tokenised(self, done: int, total: int, tokens: int) -> None:
        """Nothing."""

    def planned(self, plan: Plan, model: Model) -> None:
        """Nothing."""

    def stepped(self, metrics: StepMetrics, steps: int) -> None:
        """Nothing."""

    def saved(self, checkpoint: Path, write_s: float, hash_s: float) -> None:
        """Nothing."""

    def closed(self) -> None:
        """Nothing."""
