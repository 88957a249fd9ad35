"""A program: every rank's actions for one step, communication included, and where each stage lives."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.program.actions import Action, Backward, Compute, Forward


@dataclass(frozen=True, slots=True)
class Program:
    """One training step as a list of actions for each rank.

    Attributes:
        stage_rank: `stage_rank[s]` is the rank that holds stage `s`.
        microbatches: microbatches of the step.
        ranks: each rank's actions, in the order in which it takes them.
    """

    stage_rank: tuple[int, ...]
    microbatches: int
    ranks: tuple[tuple[Action, ...], ...]

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return len(self.stage_rank)

    def compute_order(self) -> tuple[tuple[Compute, ...], ...]:
        """Each rank's compute actions alone: the schedule."""
        return tuple(
            tuple(action for action in actions if isinstance(action, Forward | Backward)) for actions in self.ranks
        )


def in_flight(order: tuple[tuple[Compute, ...], ...], stages: int) -> tuple[int, ...]:
    """The most microbatches that each stage holds between forward and backward, under a compute order."""
    held = [0] * stages
    most = [0] * stages
    for actions in order:
        for action in actions:
            if isinstance(action, Forward):
                held[action.stage] += 1
                most[action.stage] = max(most[action.stage], held[action.stage])
            else:
                held[action.stage] -= 1
    return tuple(most)
