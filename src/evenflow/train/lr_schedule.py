"""The learning-rate schedule: a linear warm-up, then a cosine, a line, or a plateau that falls at its end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, assert_never, get_args

LrKind = Literal["cosine", "linear", "wsd"]
LR_KINDS: tuple[LrKind, ...] = get_args(LrKind)

_WARM_UP_SHARE = 0.1
_LONGEST_WARM_UP = 100
_DECAY_SHARE = 0.1  # of the steps, at the end of a plateau: as Hu et al. 2024 (MiniCPM), section 4


@dataclass(frozen=True, slots=True)
class LrSchedule:
    """Learning rates of a whole run.

    Attributes:
        steps: of the run.
        peak: the highest rate.
        kind: `cosine` (Loshchilov & Hutter 2017, eq. 5) or `linear` from the warm-up to the end; `wsd` stays at the
            peak and falls in a line at the end (warm-up, stable, decay: Hu et al. 2024, section 4).
        warm_up: steps until the peak; by default a tenth of all, and at most 100.
        decay: steps of the fall under `wsd`; by default a tenth of all.
        end: the rate after the last step, as a share of the peak.
    """

    steps: int
    peak: float
    kind: LrKind = "cosine"
    warm_up: int | None = None
    decay: int | None = None
    end: float = 0.1

    def at(self, step: int) -> float:
        """The rate of `step`, counted from 1."""
        warm_up = self.warm_up
        if warm_up is None:
            warm_up = min(max(int(self.steps * _WARM_UP_SHARE), 1), _LONGEST_WARM_UP)
        if step <= warm_up:
            return self.peak * step / warm_up
        progress = (step - warm_up) / max(self.steps - warm_up, 1)
        match self.kind:
            case "cosine":
                left = 0.5 * (1 + math.cos(math.pi * progress))
            case "linear":
                left = 1 - progress
            case "wsd":
                decay = max(int(self.steps * _DECAY_SHARE), 1) if self.decay is None else self.decay
                left = min((self.steps - step) / decay, 1.0) if decay else 1.0
            case _:
                assert_never(self.kind)
        return self.peak * (self.end + (1 - self.end) * left)
