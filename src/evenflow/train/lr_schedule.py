"""The learning-rate schedule: linear warm-up, then a cosine down to a tenth (Loshchilov & Hutter 2017, eq. 5)."""

from __future__ import annotations

import math

_FLOOR = 0.1
_WARM_UP_SHARE = 0.1
_LONGEST_WARM_UP = 100


def learning_rate(step: int, steps: int, peak: float) -> float:
    """The learning rate of `step` (counted from 1) in a run of `steps`."""
    warm_up = min(max(int(steps * _WARM_UP_SHARE), 1), _LONGEST_WARM_UP)
    if step <= warm_up:
        return peak * step / warm_up
    progress = (step - warm_up) / max(steps - warm_up, 1)
    return peak * (_FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))
