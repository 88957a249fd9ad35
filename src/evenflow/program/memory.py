"""Memory accounting: the bytes that each rank holds during and after each of its actions.

    F  keeps what backward needs, and its output until RELEASE_F (or until the next stage on the same rank is done)
    B  frees both, and the output's gradient; its input gradient takes the input's place until RELEASE_B
    I  frees what only it needed; what W needs, and the stage's input, stay until W

A forward-only program keeps nothing: F frees its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evenflow.cost import StageMemory
from evenflow.program.actions import (
    Action,
    Backward,
    Forward,
    InputBackward,
    Norm,
    ReceiveBackward,
    ReceiveForward,
    ReduceGrad,
    ReduceTied,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    Step,
    WeightBackward,
)
from evenflow.program.program import Program
from evenflow.program.table import KINDS, Ints

Passing = Literal["F", "B", "I"] | None  # which of a stage's peaks an action holds in passing


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that a rank holds, for each of its actions: the most while it runs, and what is left after it."""

    peak_bytes: Ints
    after_bytes: Ints


@dataclass(frozen=True, slots=True)
class _Effect:
    """What an action does to memory, in units of its stage's bytes."""

    saved: int = 0
    pending: int = 0
    inputs: int = 0
    outputs: int = 0
    passing: Passing = None


# The first and last stage have inputs and outputs of no bytes, so that their actions need no exception.
_EFFECTS: dict[type[Action], _Effect] = {
    Forward: _Effect(saved=1, outputs=1, passing="F"),
    Backward: _Effect(saved=-1, outputs=-1, passing="B"),
    InputBackward: _Effect(saved=-1, pending=1, inputs=1, outputs=-1, passing="I"),
    WeightBackward: _Effect(pending=-1, inputs=-1),
    SendForward: _Effect(),
    ReceiveForward: _Effect(inputs=1),
    SendBackward: _Effect(),
    ReceiveBackward: _Effect(outputs=1),
    ReleaseForward: _Effect(outputs=-1),
    ReleaseBackward: _Effect(inputs=-1),
    ReduceTied: _Effect(),
    ReduceGrad: _Effect(),
    Norm: _Effect(),
    Step: _Effect(),
}
_FORWARD_ONLY = _EFFECTS | {Forward: _Effect(inputs=-1, outputs=1, passing="F")}


def rank_memory(program: Program, memory: Sequence[StageMemory], rank: int) -> Held:
    """The bytes that `rank` holds at each of its actions; `memory[s]` is stage `s`'s.

    Parameters, gradients and optimizer state are held from the start: after the first step they are.
    """
    table = program.table
    rows = slice(int(table.begins[rank]), int(table.begins[rank + 1]))
    kind, stage = table.kind[rows], np.maximum(table.stage[rows], 0)
    effects = _FORWARD_ONLY if program.forward_only else _EFFECTS
    units = np.array([[e.saved, e.pending, e.inputs, e.outputs] for e in map(effects.__getitem__, KINDS)])
    passes = np.array([[e.passing == kind for kind in "FBI"] for e in map(effects.__getitem__, KINDS)])
    sizes = np.array([[m.saved_bytes, m.pending_bytes, m.input_bytes, m.output_bytes] for m in memory], dtype=np.int64)
    peaks = np.array(
        [[m.forward_peak_bytes, m.backward_peak_bytes, m.input_peak_bytes] for m in memory], dtype=np.int64
    )
    change = (units[kind] * sizes[stage]).sum(axis=1)
    passing = (passes[kind] * peaks[stage]).sum(axis=1)
    state = _state_bytes(program, memory, rank)
    after = state + np.cumsum(change)
    return Held(after - change + np.maximum(np.maximum(passing, change), 0), after)


def _state_bytes(program: Program, memory: Sequence[StageMemory], rank: int) -> int:
    return sum(stage.state_bytes for stage, owner in zip(memory, program.stage_rank, strict=True) if owner == rank)


def peak_bytes(program: Program, memory: Sequence[StageMemory], rank: int) -> int:
    """The most bytes that `rank` holds in a step; one without actions holds its state."""
    held = rank_memory(program, memory, rank).peak_bytes
    return int(held.max()) if held.size else _state_bytes(program, memory, rank)


@dataclass(frozen=True, slots=True)
class PeakForm:
    """One moment at which a stage alone on its rank may hold most: counts of its bytes, whatever those are."""

    saved: int
    pending: int
    inputs: int
    outputs: int
    passing: Passing

    def bytes(self, own: StageMemory) -> int:
        """What it comes to for a stage of these bytes."""
        peaks = {"F": own.forward_peak_bytes, "B": own.backward_peak_bytes, "I": own.input_peak_bytes}
        passing = 0 if self.passing is None else peaks[self.passing]
        kept = self.saved * own.saved_bytes + self.pending * own.pending_bytes
        return own.state_bytes + kept + self.inputs * own.input_bytes + self.outputs * own.output_bytes + passing


def peak_forms(program: Program, stage: int) -> frozenset[PeakForm]:
    """All distinct moments of a stage that is alone on its rank; the largest is its peak.

    They depend on the program alone, so the peak of every possible run of layers follows from a few sums.
    """
    forms: set[PeakForm] = set()
    saved = pending = inputs = outputs = 0
    for action in program.ranks[program.stage_rank[stage]]:
        effect = _EFFECTS[type(action)]
        forms.add(PeakForm(saved, pending, inputs, outputs, effect.passing))
        saved, pending = saved + effect.saved, pending + effect.pending
        inputs, outputs = inputs + effect.inputs, outputs + effect.outputs
        forms.add(PeakForm(saved, pending, inputs, outputs, None))
    return frozenset(forms)
