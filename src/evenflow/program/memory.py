"""Memory accounting: the bytes that each rank holds during and after each of its actions.

    F  keeps what backward needs, and its output until RELEASE_F (or until the next stage on the same rank is done)
    B  frees both, and the output's gradient; its input gradient takes the input's place until RELEASE_B
    I  frees what only it needed; what W needs, the stage's input and the output's gradient stay until W

What is received lies in buffers that are used again and never given up: a rank holds as many as it ever needs at once.
A stage's first B of a step makes the gradients of its parameters (its first I and W each make their part); the update
frees them. A reduction lays a message out beside the gradients that move into it. A forward-only program keeps nothing:
F frees its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from evenflow.program.table import CODES, KINDS, Ints

# Which of a stage's peaks an action holds in passing.
Passing = Literal["F", "B", "I", "first B", "first I", "message"] | None
Unmade = Literal["all", "of W", "none"]  # which gradients of a stage's parameters are not there yet


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that a rank holds: when a step begins, and for each action the most while it runs and what it leaves."""

    begin_bytes: int
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
    InputBackward: _Effect(saved=-1, pending=1, inputs=1, passing="I"),
    WeightBackward: _Effect(pending=-1, inputs=-1, outputs=-1),
    SendForward: _Effect(),
    ReceiveForward: _Effect(inputs=1),
    SendBackward: _Effect(),
    ReceiveBackward: _Effect(outputs=1),
    ReleaseForward: _Effect(outputs=-1),
    ReleaseBackward: _Effect(inputs=-1),
    ReduceTied: _Effect(passing="message"),
    ReduceGrad: _Effect(passing="message"),
    Norm: _Effect(),
    Step: _Effect(),
}
_FORWARD_ONLY = _EFFECTS | {Forward: _Effect(inputs=-1, outputs=1, passing="F")}


# What an action counts in, in the order of the columns below, and the peaks that it may hold in passing.
_SIZES = ("saved_bytes", "pending_bytes", "input_bytes", "output_bytes")
_PEAKS: dict[Passing, str] = {
    "F": "forward_peak_bytes",
    "B": "backward_peak_bytes",
    "I": "input_peak_bytes",
    "first B": "first_backward_peak_bytes",
    "first I": "first_input_peak_bytes",
    "message": "message_bytes",
}


def rank_memory(program: Program, memory: Sequence[StageMemory], rank: int) -> Held:
    """The bytes that `rank` holds at each of its actions; `memory[s]` is stage `s`'s.

    Parameters and optimizer state, and buffers for what is received, are held from the start: after the first step
    they are.
    """
    table = program.table
    rows = slice(int(table.begins[rank]), int(table.begins[rank + 1]))
    kind, stage = table.kind[rows], np.maximum(table.stage[rows], 0)
    effects = [(_FORWARD_ONLY if program.forward_only else _EFFECTS)[own] for own in KINDS]
    units = np.array([[e.saved, e.pending, e.inputs, e.outputs] for e in effects])
    sizes = _columns(memory, _SIZES)
    change = (units[kind] * sizes[stage]).sum(axis=1)
    out = _received(program, kind, stage, sizes)
    change -= out  # in a buffer that is there anyway
    passes = np.array([[e.passing == own for own in _PEAKS] for e in effects])[kind]
    for gradients in _gradients(program, rank, kind, stage):
        own = memory[gradients.stage]
        change[gradients.made] += own.gradient_bytes - own.weight_bytes
        change[gradients.weights_made] += own.weight_bytes
        change[kind == CODES[Step]] -= own.gradient_bytes
        for row, passing in gradients.passing.items():
            passes[row] = [passing == known for known in _PEAKS]
    passing = (passes * _columns(memory, tuple(_PEAKS.values()))[stage]).sum(axis=1)
    begin = _base_bytes(program, memory, rank) + int(np.cumsum(out).max(initial=0))
    after = begin + np.cumsum(change)
    return Held(begin, after - change + np.maximum(np.maximum(passing, change), 0), after)


def _columns(memory: Sequence[StageMemory], names: Sequence[str]) -> Ints:
    return np.array([[getattr(own, name) for name in names] for own in memory], dtype=np.int64)


def _received(program: Program, kind: Ints, stage: Ints, sizes: Ints) -> Ints:
    """How many bytes of receive buffers each action takes, or gives back (less than zero)."""
    where, last = np.array(program.stage_rank), program.stages - 1
    from_before = (stage > 0) & (where[stage - 1] != where[stage])
    from_after = (stage < last) & (where[np.minimum(stage + 1, last)] != where[stage])
    frees_input = (Forward,) if program.forward_only else (Backward, WeightBackward)
    inputs = (kind == CODES[ReceiveForward]).astype(np.int64) - (
        np.isin(kind, [CODES[own] for own in frees_input]) & from_before
    )
    ends = np.isin(kind, [CODES[Backward], CODES[WeightBackward]]) & from_after
    outputs = (kind == CODES[ReceiveBackward]).astype(np.int64) - ends
    received: Ints = inputs * sizes[stage, 2] + outputs * sizes[stage, 3]
    return received


@dataclass(frozen=True, slots=True)
class _Gradients:
    """Where a stage's gradients are made, as rows of its rank.

    Attributes:
        stage: the stage.
        made: after which action those are there that no linear layer's weights have.
        weights_made: and those of linear layers' weights.
        passing: actions that hold another peak in passing than others of their kind do, as they make gradients.
    """

    stage: int
    made: int
    weights_made: int
    passing: dict[int, Passing]


def _gradients(program: Program, rank: int, kind: Ints, stage: Ints) -> list[_Gradients]:
    """The stages of a rank that train."""
    found: list[_Gradients] = []
    never = len(kind)
    for own in (number for number, owner in enumerate(program.stage_rank) if owner == rank):
        at = [
            int(rows[0]) if len(rows := np.flatnonzero((kind == CODES[action]) & (stage == own))) else never
            for action in (Backward, InputBackward, WeightBackward)
        ]
        backward, input_half, weight_half = at
        made, weights_made = min(backward, input_half), min(backward, weight_half)
        if made == never or weights_made == never:
            continue
        passing: dict[int, Passing] = {backward: "first B"} if backward <= max(made, weights_made) else {}
        if input_half == made:
            passing[input_half] = "first I"
        found.append(_Gradients(own, made, weights_made, passing))
    return found


def _base_bytes(program: Program, memory: Sequence[StageMemory], rank: int) -> int:
    """What a rank holds between steps, buffers aside: all state but gradients."""
    return sum(
        stage.state_bytes - stage.gradient_bytes
        for stage, owner in zip(memory, program.stage_rank, strict=True)
        if owner == rank
    )


def peak_bytes(program: Program, memory: Sequence[StageMemory], rank: int) -> int:
    """The most bytes that `rank` holds in a step; one without actions holds what it holds between steps."""
    held = rank_memory(program, memory, rank).peak_bytes
    return int(held.max()) if held.size else _base_bytes(program, memory, rank)


@dataclass(frozen=True, slots=True)
class PeakForm:
    """One moment at which a stage alone on its rank may hold most: counts of its bytes, whatever those are."""

    saved: int
    pending: int
    inputs: int
    outputs: int
    unmade: Unmade
    passing: Passing

    def bytes(self, own: StageMemory) -> int:
        """What it comes to for a stage of these bytes."""
        passing = 0 if self.passing is None else getattr(own, _PEAKS[self.passing])
        unmade = {"all": own.gradient_bytes, "of W": own.weight_bytes, "none": 0}[self.unmade]
        kept = self.saved * own.saved_bytes + self.pending * own.pending_bytes
        received = self.inputs * own.input_bytes + self.outputs * own.output_bytes
        return int(own.state_bytes - unmade + kept + received + passing)


def peak_forms(program: Program, stage: int) -> frozenset[PeakForm]:
    """The moments of a stage that is alone on its rank, but for those that never hold most; the largest is its peak.

    They depend on the program alone, so the peak of every possible run of layers follows from a few sums.
    """
    actions = program.ranks[program.stage_rank[stage]]
    moments: dict[tuple[Unmade, Passing], set[tuple[int, ...]]] = {}  # what is held, by what else there is to it
    buffers: set[tuple[int, int]] = {(0, 0)}  # for inputs and for gradients of outputs, out at once
    saved = pending = inputs = outputs = from_before = from_after = 0
    unmade: Unmade = "all"
    for action in actions:
        effect = _EFFECTS[type(action)]
        passing = effect.passing
        then = unmade
        match action:
            case Backward():
                passing, then = ("B" if unmade == "none" else "first B"), "none"
            case InputBackward() if unmade == "all":
                passing, then = "first I", "of W"
            case WeightBackward() if unmade == "of W":
                then = "none"
            case Step():
                then = "all"
            case _:
                pass
        moments.setdefault((unmade, passing), set()).add((saved, pending, inputs, outputs))
        before, after = _buffers_taken(action)
        from_before, from_after = from_before + before, from_after + after
        buffers.add((from_before, from_after))
        saved, pending, unmade = saved + effect.saved, pending + effect.pending, then
        inputs, outputs = inputs + effect.inputs - before, outputs + effect.outputs - after
        moments.setdefault((unmade, None), set()).add((saved, pending, inputs, outputs))
    most = _largest(buffers)
    return frozenset(
        PeakForm(saved, pending, inputs + before, outputs + after, unmade, passing)
        for (unmade, passing), held in moments.items()
        for saved, pending, inputs, outputs in _largest(held)
        for before, after in most
    )


def _buffers_taken(action: Action) -> tuple[int, int]:
    """How many buffers for a stage's inputs and for its outputs' gradients an action takes, where it is alone."""
    match action:
        case ReceiveForward():
            return 1, 0
        case ReceiveBackward():
            return 0, 1
        case Backward() | WeightBackward():
            return -1, -1
        case _:
            return 0, 0


def _largest(counts: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Those of which none other has as much or more of everything."""
    kept: list[tuple[int, ...]] = []
    for own in sorted(counts, reverse=True):
        if not any(all(more >= few for more, few in zip(other, own, strict=True)) for other in kept):
            kept.append(own)
    return kept
