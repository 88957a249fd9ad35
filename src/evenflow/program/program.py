"""A program: every rank's actions for one step, communication included, and where each stage lives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from evenflow.program.actions import (
    Action,
    Backward,
    Forward,
    InputBackward,
    Order,
    WeightBackward,
)
from evenflow.program.graph import Graph, build_graph
from evenflow.program.table import Table, make_table


@dataclass(frozen=True)  # without slots: `cached_property` keeps what is read off the actions once
class Program:
    """One step as a list of actions for each rank.

    Attributes:
        stage_rank: `stage_rank[s]` is the rank that holds stage `s`.
        microbatches: microbatches of the step.
        ranks: each rank's actions, in the order in which it takes them.
        forward_only: whether it evaluates: no backward, no update.
        reduces: whether weight gradients are added over data-parallel replicas.
        tied: groups of stages that share weights. The weight that stages of one rank share is one tensor there, with
            one gradient; see `reducer`.
    """

    stage_rank: tuple[int, ...]
    microbatches: int
    ranks: tuple[tuple[Action, ...], ...]
    forward_only: bool = False
    reduces: bool = False
    tied: tuple[tuple[int, ...], ...] = ()

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return len(self.stage_rank)

    @property
    def tied_apart(self) -> tuple[tuple[int, ...], ...]:
        """The tied groups whose stages are on several ranks: those whose gradients REDUCE_TIED adds."""
        return tuple(group for group in self.tied if len({self.stage_rank[stage] for stage in group}) > 1)

    def reducer(self, stage: int) -> int:
        """The stage whose REDUCE_GRAD reduces the weight that `stage` shares: the first of its group on its rank.

        A weight is reduced once on each rank that has it. The REDUCE_GRADs of the group's other stages leave it out;
        `verify` proves that all of them come after its whole gradient. A stage that shares nothing is its own.
        """
        group = next((group for group in self.tied if stage in group), (stage,))
        return min(own for own in group if self.stage_rank[own] == self.stage_rank[stage])

    @cached_property
    def table(self) -> Table:
        """All actions as columns of numbers."""
        return make_table(self.ranks)

    @cached_property
    def graph(self) -> Graph:
        """What waits for what.

        Raises:
            ProgramError: the ranks wait for each other for ever.
        """
        return build_graph(self.stage_rank, self.microbatches, self.ranks, self.table, self.tied)

    def compute_order(self) -> Order:
        """Each rank's compute actions alone: the schedule."""
        compute = Forward | Backward | InputBackward | WeightBackward
        return tuple(tuple(action for action in actions if isinstance(action, compute)) for actions in self.ranks)


def in_flight(order: Order, stages: int) -> tuple[int, ...]:
    """The most microbatches that each stage holds between forward and the end of backward, under a compute order."""
    held = [0] * stages
    most = [0] * stages
    for actions in order:
        for action in actions:
            if isinstance(action, Forward):
                held[action.stage] += 1
                most[action.stage] = max(most[action.stage], held[action.stage])
            elif isinstance(action, Backward | WeightBackward):
                held[action.stage] -= 1
    return tuple(most)
