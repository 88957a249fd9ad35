"""What a search is given: layers and their costs, ranks, a schedule, and the memory each rank may use."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.cost import Costs, HasLayers, MemoryModel
from evenflow.errors import InputError
from evenflow.plan import tied_stages
from evenflow.program import AUTO, default_stage_rank, find_schedule, misfit, tp_misfit
from evenflow.search.hardware import split_hardware
from evenflow.simulate import Hardware

Split = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One step's work on one pipeline.

    Attributes:
        model: the layers and their bytes.
        costs: seconds of each layer and transfer.
        microbatches: microbatches of a step.
        schedule: the schedule's name, or `auto`.
        stage_rank: the rank of each stage.
        limit: bytes that a rank may use.
        at_once: how many ranks compute at full speed at once.
    """

    model: HasLayers
    costs: Costs
    microbatches: int
    schedule: str
    stage_rank: tuple[int, ...]
    limit: float
    at_once: int

    @property
    def ranks(self) -> int:
        """How many ranks there are."""
        return max(self.stage_rank) + 1

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return len(self.stage_rank)

    @property
    def tied(self) -> tuple[tuple[int, ...], ...]:
        """The groups of stages that share weights."""
        return tied_stages(self.stages, self.model.tied_bytes)

    @property
    def reduces(self) -> bool:
        """Whether gradients are added over replicas."""
        return self.costs.replicas > 1

    @property
    def memory(self) -> MemoryModel:
        """The bytes of any run of its layers."""
        return MemoryModel(self.model, self.costs.shares, self.costs.process_bytes, self.costs.replicas)

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self.model.layers)

    def hardware(self, split: Split) -> Hardware:
        """What the simulator needs to know of a split."""
        return split_hardware(self.costs, self.memory, split, self.stage_rank, self.at_once)


def place_stages(
    schedule: str, ranks: int, layers: int, stages_per_rank: int | None = None, tp: int = 1
) -> tuple[int, ...]:
    """The rank of each stage under a schedule, or `auto`.

    Raises:
        InputError: no such schedule, more stages than layers, a number of stages that the schedule cannot run, or
            stages that are shared out over `tp` processes in a way that it cannot.
    """
    reason = tp_misfit(schedule, tp)
    if reason is not None:
        raise InputError(reason)
    if schedule == AUTO:
        stage_rank = default_stage_rank("zb-2p", ranks, stages_per_rank)
    else:
        stage_rank = default_stage_rank(schedule, ranks, stages_per_rank)
        reason = misfit(schedule, stage_rank)
        if reason is not None:
            raise InputError(reason)
    if len(stage_rank) > layers:
        each = len(stage_rank) // ranks
        title = "auto" if schedule == AUTO else find_schedule(schedule).title
        more = "" if each == 1 else f" ({title}: {each} on each rank)"
        raise InputError(
            f"{len(stage_rank)} stages{more} need at least {len(stage_rank)} layers, and there are {layers}: "
            f"{layers // each} processes or fewer would do"
        )
    return stage_rank
