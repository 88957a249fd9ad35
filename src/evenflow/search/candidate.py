"""One candidate of the search: a layer split under a schedule, simulated."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.cost import Costs, MemoryModel
from evenflow.errors import InputError
from evenflow.program import Program
from evenflow.search.hardware import split_hardware
from evenflow.search.problem import Split
from evenflow.simulate import simulate
from evenflow.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Candidate:
    """A split and the timeline that its program would have."""

    split: Split
    timeline: Timeline

    @property
    def step_s(self) -> float:
        """Seconds of its step."""
        return self.timeline.step_s

    @property
    def peak_bytes(self) -> int:
        """The most memory of any rank."""
        return max(rank.peak_bytes for rank in self.timeline.ranks)


def try_split(
    split: Split, program: Program, costs: Costs, memory: MemoryModel, at_once: int | None = None
) -> Candidate:
    """Simulate `program` with `split`'s layers on its stages."""
    return Candidate(split, simulate(program, split_hardware(costs, memory, split, program.stage_rank, at_once)))


def equal_split(layers: int, stages: int) -> Split:
    """Equal layer counts, blocks counted alone: the embedding joins the first stage and the head the last.

    This is what trainers without measured costs do; a remainder goes to the first stages.

    Raises:
        InputError: there are fewer blocks than stages.
    """
    blocks = layers - 2
    if blocks < stages:
        raise InputError(
            f"{blocks} blocks do not make {stages} stages of equal counts; {max(blocks, 1)} or fewer would do"
        )
    share, more = divmod(blocks, stages)
    counts = [share + (stage < more) for stage in range(stages)]
    counts[0] += 1
    counts[-1] += 1
    split: list[tuple[int, ...]] = []
    first = 0
    for count in counts:
        split.append(tuple(range(first, first + count)))
        first += count
    return tuple(split)
