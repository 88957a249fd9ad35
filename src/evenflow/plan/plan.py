"""The plan: which layers form which stage, on which rank, in which schedule, and what that is predicted to cost."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.cost import LinkCost, Origin, RankCost, StageCost, StageMemory


@dataclass(frozen=True, slots=True)
class Axes:
    """Degrees of parallelism: pipeline, tensor, data, context and expert."""

    pp: int = 1
    tp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: a contiguous run of layers on one rank (its index on the pp axis)."""

    rank: int
    layers: tuple[int, ...]
    cost: StageCost
    memory: StageMemory


@dataclass(frozen=True, slots=True)
class RankPlan:
    """One rank: its stages, its seconds in forward and backward of a step, and its peak memory."""

    rank: int
    stages: tuple[int, ...]
    busy_s: float
    peak_bytes: int
    cost: RankCost


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a step of this plan is predicted to be; `mfu` is model FLOPs / (ranks at once x step x peak FLOP/s)."""

    step_s: float
    idle_fraction: float
    imbalance: float
    mfu: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Bound:
    """A proven lower bound of the step over all contiguous splits and schedules, and step / bound - 1."""

    step_s: float
    gap: float


@dataclass(frozen=True, slots=True)
class Search:
    """How many plans were simulated and how long that took."""

    considered: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a run needs to know, and all that a simulation of it needs.

    Attributes:
        model: what the user called the model.
        fingerprint: the traced model's hash: a plan is for one model at one microbatch shape.
        cluster: what the user called the cluster.
        threads: compute threads of each rank.
        at_once: how many ranks compute at full speed at once: fewer than there are where they share cores.
        axes: degrees of parallelism.
        schedule: the schedule's name.
        micro_batch_size: sequences in a microbatch.
        microbatches: microbatches of a step, for each data-parallel replica.
        seq_length: tokens of a sequence.
        layer_names: the model's layers, by index.
        stages: in the model's order.
        ranks: by their index on the pp axis.
        link: transfers between neighbouring stages.
        reduce_s: combining the gradient norm over all ranks.
        predicted: the simulated step.
        bound: how far from the best possible it is.
        search: how it was found.
        costs: for each group of figures, whether it was measured, analytic or assumed.
        notes: what a person should know about this plan, one line each.
    """

    model: str
    fingerprint: str
    cluster: str
    threads: int
    at_once: int
    axes: Axes
    schedule: str
    micro_batch_size: int
    microbatches: int
    seq_length: int
    layer_names: tuple[str, ...]
    stages: tuple[StagePlan, ...]
    ranks: tuple[RankPlan, ...]
    link: LinkCost
    reduce_s: float
    predicted: Prediction
    bound: Bound
    search: Search
    costs: dict[str, Origin]
    notes: tuple[str, ...]

    @property
    def stage_rank(self) -> tuple[int, ...]:
        """The rank that holds each stage."""
        return tuple(stage.rank for stage in self.stages)

    @property
    def stage_layers(self) -> tuple[tuple[int, ...], ...]:
        """The layers of each stage."""
        return tuple(stage.layers for stage in self.stages)

    @property
    def global_batch_size(self) -> int:
        """Sequences of a step."""
        return self.micro_batch_size * self.microbatches * self.axes.dp
