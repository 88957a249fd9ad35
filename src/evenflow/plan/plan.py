"""The plan: which layers form which stage, on which rank, in which schedule, and what that is predicted to cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evenflow.cost import (
    Costs,
    LayerCost,
    LinkCost,
    Links,
    Network,
    Origin,
    RankCost,
    StageCost,
    StageMemory,
    rank_links,
)
from evenflow.plan.axes import Axes, Zero
from evenflow.spec import Dtype, Recompute, gradient_bytes
from evenflow.spec.accelerators import reserved_bytes
from evenflow.spec.cluster import CPU
from evenflow.spec.trainers import OURS

Posting = Literal["even", "costs"]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer: its name, seconds and bytes for one microbatch, from which other splits follow.

    They are those under its way to recompute: under `full`, a block's backward has its forward in it; under
    `selective`, that of its attention.
    """

    name: str
    cost: LayerCost
    parameter_bytes: int
    saved_bytes: int
    pending_bytes: int
    output_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int
    shared_bytes: int
    input_peak_bytes: int
    first_backward_peak_bytes: int
    first_input_peak_bytes: int
    kept_gradient_bytes: int
    weight_bytes: int
    recompute: Recompute = "none"
    master_bytes: int = 0
    freed_input_bytes: int = 0
    state_bytes: int = 0
    largest_gradient_bytes: int = 0


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
    """What a step of this plan is predicted to be; `mfu` is model FLOPs / (ranks at once x step x peak FLOP/s).

    Model FLOPs are those of one forward and one backward (PaLM, Chowdhery et al., 2022, appendix B): what is recomputed
    does not count.
    """

    step_s: float
    idle_fraction: float
    imbalance: float
    mfu: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Bound:
    """A proven lower bound of the step, and step / bound - 1.

    It holds for all contiguous splits and schedules; in a preset's plan for all layouts that were searched instead.
    """

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
        order: each rank's compute actions as text, where the schedule was made for these costs; else None.
        posting: by which times receives are posted: those of the costs, or a second an action.
        micro_batch_size: sequences in a microbatch.
        microbatches: microbatches of a step, for each data-parallel replica.
        seq_length: tokens of a sequence.
        memory_limit: bytes that each rank may use.
        layers: the model's layers, by index.
        stage_forward_s: what a stage's forward costs beside its layers.
        stage_backward_s: what a stage's backward costs beside its layers.
        stages: in the model's order.
        ranks: by their index on the pp axis.
        link: transfers between neighbouring stages; with a network, of those on one node.
        reduce_s: combining the gradient norm over all ranks.
        peak_flops: floating-point operations a second of one device at its best.
        predicted: the simulated step.
        bound: how far from the best possible it is.
        search: how it was found.
        costs: for each group of figures, whether it was measured, analytic or assumed.
        notes: what a person should know about this plan, one line each.
        device: what each rank computes on: `cpu`, or a GPU's name.
        zero: what replicas share out: nothing, or with 1 the optimizer's state.
        tied_bytes: of weights that head and embedding share; a rank with the head alone has a copy of them.
        dtype: of weights, activations and messages.
        process_bytes: what each rank's process holds beside tensors, in the bytes of its stages and its peak; 0 where
            that was not measured.
        sum_link: what a turn of a ring takes that adds gradients up; None where that is a transfer's.
        trainer: who can run it; plans for others than evenflow are to be exported.
        speeds: how fast each rank computes, where they differ; layers and stages have the seconds of speed 1.
        memory_limits: bytes that each rank may use, where they differ; `memory_limit` is the most of them.
        source: where the model was found: a path, a hub id, or a preset's name; empty where nobody said.
        network: transfers between stages on different nodes; None where all edges are alike.
    """

    model: str
    fingerprint: str
    cluster: str
    threads: int
    at_once: int
    axes: Axes
    schedule: str
    order: tuple[str, ...] | None
    posting: Posting
    micro_batch_size: int
    microbatches: int
    seq_length: int
    memory_limit: int
    layers: tuple[LayerPlan, ...]
    stage_forward_s: float
    stage_backward_s: float
    stages: tuple[StagePlan, ...]
    ranks: tuple[RankPlan, ...]
    link: LinkCost
    reduce_s: float
    peak_flops: float
    predicted: Prediction
    bound: Bound
    search: Search
    costs: dict[str, Origin]
    notes: tuple[str, ...]
    device: str = "cpu"
    zero: Zero = 0
    tied_bytes: int = 0
    dtype: Dtype = "fp32"
    process_bytes: int = 0
    sum_link: LinkCost | None = None
    trainer: str = OURS
    speeds: tuple[float, ...] | None = None
    memory_limits: tuple[int, ...] | None = None
    source: str = ""
    network: Network | None = None

    @property
    def tied_gradient_bytes(self) -> int:
        """Of the gradients of the weights that head and embedding share."""
        return gradient_bytes(self.tied_bytes, self.dtype)

    @property
    def tied(self) -> tuple[tuple[int, ...], ...]:
        """The groups of stages that share weights."""
        return tied_stages(len(self.stages), self.tied_bytes)

    @property
    def stage_rank(self) -> tuple[int, ...]:
        """The rank that holds each stage."""
        return tuple(stage.rank for stage in self.stages)

    @property
    def stage_layers(self) -> tuple[tuple[int, ...], ...]:
        """The layers of each stage."""
        return tuple(stage.layers for stage in self.stages)

    @property
    def recompute(self) -> tuple[Recompute, ...]:
        """What each layer does again in its backward."""
        return tuple(layer.recompute for layer in self.layers)

    @property
    def recomputed(self) -> str:
        """The same in a word: what all blocks do, or `mixed`."""
        blocks = set(self.recompute[1:-1]) or {"none"}
        return blocks.pop() if len(blocks) == 1 else "mixed"

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The model's layers, by index."""
        return tuple(layer.name for layer in self.layers)

    @property
    def layer_costs(self) -> Costs:
        """What the plan was made from."""
        return Costs(
            layers=tuple(layer.cost for layer in self.layers),
            stage_forward_s=self.stage_forward_s,
            stage_backward_s=self.stage_backward_s,
            link=self.link,
            reduce_s=self.reduce_s,
            peak_flops=self.peak_flops,
            origin=self.costs,
            replicas=self.axes.copies,
            shares=self.axes.copies if self.zero else 1,
            speeds=self.speeds,
            process_bytes=self.process_bytes,
            sum_link=self.sum_link,
            network=self.network,
        )

    @property
    def links(self) -> Links:
        """What a transfer takes on each edge between ranks."""
        return rank_links(self.link, self.network, self.stage_rank)

    @property
    def worst_rank(self) -> RankPlan:
        """The rank that holds most; of equal ones the first."""
        return max(self.ranks, key=lambda rank: (rank.peak_bytes, -rank.rank))

    def reserved_bytes(self, rank: RankPlan) -> int:
        """What a rank's device is seen to have given away when its tensors take their peak.

        Without a GPU that is the peak: it is counted as the system shows it, and no allocator keeps more for later.
        """
        return rank.peak_bytes if self.device == CPU else int(reserved_bytes(rank.peak_bytes))

    @property
    def global_batch_size(self) -> int:
        """Sequences of a step."""
        return self.micro_batch_size * self.microbatches * self.axes.dp


def tied_stages(stages: int, tied_bytes: int) -> tuple[tuple[int, ...], ...]:
    """The groups of stages that share weights: those of the embedding and the head, where they share any."""
    return ((0, stages - 1),) if tied_bytes and stages > 1 else ()
