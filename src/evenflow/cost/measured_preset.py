"""A preset's costs with its layers as they were rehearsed, so that what was timed is what the next plan is made from.

A profile is of one shape: so many processes that share out every layer, and so many sequences and tokens in a
microbatch. How much faster or slower than its closed form a layer was there says nothing of another shape, whose
products have other sizes: so no other one is scaled from it, and the search is kept to this one
(`search.layouts.profiled`). Exchanges, transfers and bytes are the closed forms' own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import numpy as np

from evenflow.cost.costs import Origin
from evenflow.cost.preset import Floats, LayerFigures, PresetCosts, Shape
from evenflow.cost.profile import Profile
from evenflow.spec import RECOMPUTES
from evenflow.spec.accelerators import Accelerator
from evenflow.spec.architecture import Architecture
from evenflow.spec.trainers import Trainer


def dimensions_hash(architecture: Architecture) -> str:
    """What a preset's profile is known by: its dimensions, whatever it is called and wherever they come from."""
    facts = asdict(architecture)
    del facts["name"], facts["source"]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class MeasuredPreset(PresetCosts):
    """The figures of one architecture, those of a profile at its shape.

    Args:
        architecture: what was rehearsed.
        device: what exchanges and transfers are those of.
        seq: tokens of a sequence, as many as the profile has.
        trainer: who runs it.
        profile: of a preset, with as many layers as the architecture has.
    """

    def __init__(
        self, architecture: Architecture, device: Accelerator, seq: int, trainer: Trainer, profile: Profile
    ) -> None:
        super().__init__(architecture, device, seq, trainer)
        assert profile.rehearsal is not None
        assert len(profile.layers) == self.layers
        self._profile, self._halves = profile, profile.rehearsal.halves
        self._shape = Shape(tp=profile.rehearsal.tp, micro_batch=profile.micro_batch_size)

    @property
    def origins(self) -> dict[str, Origin]:
        """As of `PresetCosts`."""
        return {"layers": "measured", "halves": self._halves, "optimizer": "measured"}

    def work_out(self, shape: Shape) -> LayerFigures:
        """As of `PresetCosts`; a backward is the sum of its halves, as there."""
        found = super().work_out(shape)
        if shape != self._shape:
            return found
        own = self._profile.layers
        return replace(
            found,
            forward_s=np.array([it.forward_s for it in own]),
            input_s=np.array([[it.input_s + it.again_s(way) for it in own] for way in RECOMPUTES]),
            weight_s=np.array([it.weight_s for it in own]),
        )

    def update_seconds(self, shape: Shape, shares: tuple[int, int]) -> Floats:
        """As of `PresetCosts`, the norms of the gradients included."""
        if shape != self._shape:
            return super().update_seconds(shape, shares)
        norms = np.array([it.norm_s for it in self._profile.layers])
        whole = np.array([it.optimizer_s for it in self._profile.layers])
        found: Floats = norms + whole * self.owned(shape, shares) / self.owned(shape, (1, 1))
        return found
