"""Memory accounting: the bytes that each rank holds before, during and after each of its actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from evenflow.cost import StageMemory
from evenflow.program.actions import (
    Backward,
    Forward,
    Norm,
    ReceiveBackward,
    ReceiveForward,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    StageAction,
    Step,
)
from evenflow.program.program import Program

Passing = Literal["F", "B"] | None  # which of a stage's peaks an action holds in passing


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes held around one action: the most while it runs, and what is left after it."""

    peak_bytes: int
    after_bytes: int


@dataclass(frozen=True, slots=True)
class _Effect:
    """What an action does to memory, in units of its stage's bytes: how many saved, inputs, outputs it adds."""

    saved: int = 0
    inputs: int = 0
    outputs: int = 0
    passing: Passing = None


def rank_memory(program: Program, memory: Sequence[StageMemory], rank: int) -> tuple[Held, ...]:
    """The bytes that `rank` holds at each of its actions; `memory[s]` is stage `s`'s.

    Parameters, gradients and optimizer state are held from the start: after the first step they are.
    """
    held = sum(stage.state_bytes for stage, owner in zip(memory, program.stage_rank, strict=True) if owner == rank)
    track: list[Held] = []
    for action in program.ranks[rank]:
        if isinstance(action, Norm | Step):
            track.append(Held(held, held))
            continue
        effect, own = _effect(action, program.stages - 1), memory[action.stage]
        change = effect.saved * own.saved_bytes + effect.inputs * own.input_bytes + effect.outputs * own.output_bytes
        passing = {None: 0, "F": own.forward_peak_bytes, "B": own.backward_peak_bytes}[effect.passing]
        track.append(Held(held + max(passing, change, 0), held + change))
        held += change
    return tuple(track)


def peak_bytes(program: Program, memory: Sequence[StageMemory], rank: int) -> int:
    """The most bytes that `rank` holds in a step."""
    return max(held.peak_bytes for held in rank_memory(program, memory, rank))


@dataclass(frozen=True, slots=True)
class PeakForm:
    """One moment at which a stage alone on its rank may hold most: counts of its bytes, whatever those are."""

    saved: int
    inputs: int
    outputs: int
    passing: Passing

    def bytes(self, own: StageMemory) -> int:
        """What it comes to for a stage of these bytes."""
        passing = {None: 0, "F": own.forward_peak_bytes, "B": own.backward_peak_bytes}[self.passing]
        counts = self.saved * own.saved_bytes + self.inputs * own.input_bytes + self.outputs * own.output_bytes
        return own.state_bytes + counts + passing


def peak_forms(program: Program, stage: int) -> frozenset[PeakForm]:
    """All distinct moments of a stage that is alone on its rank; the largest is its peak.

    They depend on the program alone, so the peak of every possible run of layers follows from a few sums.
    """
    forms: set[PeakForm] = set()
    saved = inputs = outputs = 0
    for action in program.ranks[program.stage_rank[stage]]:
        if isinstance(action, Norm | Step):
            continue
        effect = _effect(action, program.stages - 1)
        forms.add(PeakForm(saved, inputs, outputs, effect.passing))
        saved, inputs, outputs = saved + effect.saved, inputs + effect.inputs, outputs + effect.outputs
        forms.add(PeakForm(saved, inputs, outputs, None))
    return frozenset(forms)


def _effect(action: StageAction, last_stage: int) -> _Effect:
    match action:
        case Forward():
            return _Effect(saved=1, outputs=1, passing="F")
        case Backward(stage, _):
            # The input gradient takes the input's place until RELEASE_B; the output's gradient is freed.
            return _Effect(saved=-1, outputs=-1 if stage < last_stage else 0, passing="B")
        case ReceiveForward():
            return _Effect(inputs=1)
        case ReceiveBackward():
            return _Effect(outputs=1)
        case ReleaseForward():
            return _Effect(outputs=-1)
        case ReleaseBackward():
            return _Effect(inputs=-1)
        case SendForward() | SendBackward():
            return _Effect()
        case _:
            assert_never(action)
