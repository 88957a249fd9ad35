"""What a microbatch is: token ids, what is to be learned of them, and where documents begin."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evenflow.runtime import to_device

NOT_LEARNED = -100  # a label that no loss counts, as in transformers


@dataclass(frozen=True, slots=True, eq=False)
class Microbatch:
    """What passes through the pipeline at a time.

    Attributes:
        ids: token ids [batch, seq].
        labels: what each position is to be, as the one before it predicts it [batch, seq]; NOT_LEARNED where nobody
            does; by default the ids.
        positions: of each token in its document [batch, seq], from 0 again where documents lie one after another in
            a sequence; by default those in the sequence.
        counted: the predicted tokens, where they are known already: to count on a GPU is to wait for it.
    """

    ids: Tensor
    labels: Tensor | None = None
    positions: Tensor | None = None
    counted: int | None = None

    @property
    def predicted(self) -> int:
        """How many token losses there are: labels that are learned, but for the first of a sequence."""
        if self.counted is not None:
            return self.counted
        if self.labels is None:
            tokens = self.ids.shape[-1]
            return self.ids.numel() // tokens * (tokens - 1) if tokens else 0
        return int((self.labels[..., 1:] != NOT_LEARNED).sum())

    @property
    def targets(self) -> Tensor:
        """Labels with at least one that is learned; where there is none the ids, whose loss then weighs nothing."""
        return self.labels if self.labels is not None and self.predicted else self.ids

    def to(self, device: torch.device) -> Microbatch:
        """The same on a device, its predicted tokens counted before; copies are not waited for."""
        labels = None if self.labels is None else to_device(self.labels, device)
        positions = None if self.positions is None else to_device(self.positions, device)
        return replace(
            self, ids=to_device(self.ids, device), labels=labels, positions=positions, counted=self.predicted
        )
