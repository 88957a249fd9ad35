"""plan.json: the plan as other people's scripts read it, and back; its keys are a promise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from evenflow.cost import LayerCost, Origin, RankCost, StageCost, StageMemory
from evenflow.errors import InputError, ProgramError
from evenflow.files.document import Document, Part, read_document, refused_as, write_json
from evenflow.files.kinds import PLAN, Kind
from evenflow.files.parts import (
    MOST_LAYERS,
    MOST_STEP_BYTES,
    Amount,
    Bytes,
    Count,
    Figure,
    Index,
    LinkPart,
    Microbatches,
    NetworkPart,
    Rate,
    Seconds,
    Speed,
    StepSeconds,
    no_time,
)
from evenflow.plan import Axes, Bound, LayerPlan, Plan, Posting, Prediction, RankPlan, Search, StagePlan, Zero
from evenflow.program import AUTO, SCHEDULES, check_size, misfit, verify_plan
from evenflow.spec import Dtype, Recompute
from evenflow.spec.trainers import OURS


class AxesPart(Part):
    """Degrees of parallelism."""

    pp: Count
    tp: Count
    dp: Count
    cp: Count
    ep: Count


class StagePart(Part):
    """One stage: where it is, what it holds, its seconds and bytes for one microbatch."""

    rank: Index
    layers: Annotated[list[Index], Field(min_length=1)]
    forward_s: Seconds
    backward_s: Seconds
    input_s: Seconds
    weight_s: Seconds
    parameter_bytes: Bytes
    state_bytes: Bytes
    saved_bytes: Bytes
    pending_bytes: Bytes
    input_bytes: Bytes
    output_bytes: Bytes
    forward_peak_bytes: Bytes
    backward_peak_bytes: Bytes
    input_peak_bytes: Bytes
    weight_bytes: Bytes
    first_backward_peak_bytes: Bytes
    first_input_peak_bytes: Bytes
    master_bytes: Bytes = 0
    message_bytes: Bytes = 0

    @classmethod
    def of(cls, stage: StagePlan) -> StagePart:
        """The part that says what `stage` is."""
        return cls(
            rank=stage.rank,
            layers=list(stage.layers),
            **{name: getattr(stage.cost, name) for name in StageCost.__slots__},
            **{name: getattr(stage.memory, name) for name in StageMemory.__slots__},
        )

    def value(self) -> StagePlan:
        """The stage that this part says."""
        memory = StageMemory(**{name: getattr(self, name) for name in StageMemory.__slots__})
        cost = StageCost(**{name: getattr(self, name) for name in StageCost.__slots__})
        return StagePlan(self.rank, tuple(self.layers), cost, memory)


class RankPart(Part):
    """One rank: its stages, its seconds in forward and backward of a step, and its peak memory."""

    rank: Index
    stages: Annotated[list[Index], Field(min_length=1)]
    busy_s: Amount
    peak_bytes: Bytes
    norm_s: Seconds
    optimizer_s: Seconds
    reserved_bytes: Bytes = 0  # for who reads the file: it follows from the peak, and is not read back

    @classmethod
    def of(cls, rank: RankPlan, reserved_bytes: int) -> RankPart:
        """The part that says what `rank` is."""
        return cls(
            rank=rank.rank,
            stages=list(rank.stages),
            busy_s=rank.busy_s,
            peak_bytes=rank.peak_bytes,
            norm_s=rank.cost.norm_s,
            optimizer_s=rank.cost.optimizer_s,
            reserved_bytes=reserved_bytes,
        )

    def value(self) -> RankPlan:
        """The rank that this part says."""
        cost = RankCost(self.norm_s, self.optimizer_s)
        return RankPlan(self.rank, tuple(self.stages), self.busy_s, self.peak_bytes, cost)


class LayerPart(Part):
    """One layer: its seconds and bytes for one microbatch."""

    name: str
    forward_s: Seconds
    backward_s: Seconds
    input_s: Seconds
    weight_s: Seconds
    norm_s: Seconds
    optimizer_s: Seconds
    parameter_bytes: Bytes
    saved_bytes: Bytes
    pending_bytes: Bytes
    output_bytes: Bytes
    forward_peak_bytes: Bytes
    backward_peak_bytes: Bytes
    shared_bytes: Bytes
    input_peak_bytes: Bytes
    first_backward_peak_bytes: Bytes
    first_input_peak_bytes: Bytes
    kept_gradient_bytes: Bytes
    weight_bytes: Bytes
    recompute_s: Seconds
    selective_s: Seconds
    recompute: Recompute
    master_bytes: Bytes = 0
    freed_input_bytes: Bytes = 0
    reduce_s: Seconds | None = None
    state_bytes: Bytes = 0
    largest_gradient_bytes: Bytes = 0

    @classmethod
    def of(cls, layer: LayerPlan) -> LayerPart:
        """The part that says what `layer` is."""
        own = {name: getattr(layer, name) for name in LayerPlan.__slots__ if name != "cost"}
        return cls(**own, **{name: getattr(layer.cost, name) for name in LayerCost.__slots__})

    def value(self) -> LayerPlan:
        """The layer that this part says."""
        cost = LayerCost(**{name: getattr(self, name) for name in LayerCost.__slots__})
        return LayerPlan(cost=cost, **{name: getattr(self, name) for name in LayerPlan.__slots__ if name != "cost"})


class PredictedPart(Part):
    """What a step of the plan is predicted to be."""

    step_s: StepSeconds
    idle_fraction: Figure
    imbalance: Figure
    mfu: Figure
    tokens_per_s: Amount


class BoundPart(Part):
    """The proven lower bound and the gap to it."""

    step_s: StepSeconds
    gap: Figure


class SearchPart(Part):
    """How the plan was found."""

    considered: Index
    seconds: Amount


class MemoryPart(Part):
    """The fullest rank; as with `reserved_bytes`, for who reads the file."""

    worst_rank: Index
    peak_bytes: Bytes
    reserved_bytes: Bytes


class PlanDocument(Document):
    """The whole file. The keys down to `costs` are the promise; those after it make it a whole plan."""

    kind: ClassVar[Kind] = PLAN

    model: str
    axes: AxesPart
    schedule: str
    micro_batch_size: Count
    microbatches: Microbatches
    stages: Annotated[list[StagePart], Field(min_length=1)]
    ranks: Annotated[list[RankPart], Field(min_length=1)]
    predicted: PredictedPart
    bound: BoundPart
    search: SearchPart
    costs: dict[str, Origin]
    fingerprint: str
    cluster: str
    threads: Count
    at_once: Count
    seq_length: Annotated[Count, Field(ge=2)]
    memory_limit: Bytes
    order: list[str] | None
    posting: Posting
    layers: Annotated[list[LayerPart], Field(min_length=1, max_length=MOST_LAYERS)]
    stage_forward_s: Seconds
    stage_backward_s: Seconds
    link: LinkPart
    reduce_s: Seconds
    peak_flops: Rate
    notes: list[str]
    device: str = "cpu"
    zero: Zero = 0
    tied_bytes: Bytes = 0
    dtype: Dtype = "fp32"
    process_bytes: Bytes = 0
    sum_link: LinkPart | None = None
    trainer: str = OURS
    speeds: list[Speed] | None = None
    memory_limits: list[Bytes] | None = None
    source: str = ""
    memory: MemoryPart | None = None
    network: NetworkPart | None = None

    @classmethod
    def of(cls, plan: Plan) -> PlanDocument:
        """The file that says what `plan` is."""
        worst = plan.worst_rank
        return cls(
            model=plan.model,
            axes=AxesPart(**{name: getattr(plan.axes, name) for name in Axes.__slots__}),
            schedule=plan.schedule,
            micro_batch_size=plan.micro_batch_size,
            microbatches=plan.microbatches,
            stages=[StagePart.of(stage) for stage in plan.stages],
            ranks=[RankPart.of(rank, plan.reserved_bytes(rank)) for rank in plan.ranks],
            predicted=PredictedPart(
                **{name: getattr(plan.predicted, name) for name in Prediction.__slots__},
            ),
            bound=BoundPart(step_s=plan.bound.step_s, gap=plan.bound.gap),
            search=SearchPart(considered=plan.search.considered, seconds=plan.search.seconds),
            costs=dict(plan.costs),
            fingerprint=plan.fingerprint,
            cluster=plan.cluster,
            threads=plan.threads,
            at_once=plan.at_once,
            seq_length=plan.seq_length,
            memory_limit=plan.memory_limit,
            order=None if plan.order is None else list(plan.order),
            posting=plan.posting,
            layers=[LayerPart.of(layer) for layer in plan.layers],
            stage_forward_s=plan.stage_forward_s,
            stage_backward_s=plan.stage_backward_s,
            link=LinkPart.of(plan.link),
            reduce_s=plan.reduce_s,
            peak_flops=plan.peak_flops,
            notes=list(plan.notes),
            device=plan.device,
            zero=plan.zero,
            tied_bytes=plan.tied_bytes,
            dtype=plan.dtype,
            process_bytes=plan.process_bytes,
            sum_link=None if plan.sum_link is None else LinkPart.of(plan.sum_link),
            trainer=plan.trainer,
            speeds=None if plan.speeds is None else list(plan.speeds),
            memory_limits=None if plan.memory_limits is None else list(plan.memory_limits),
            source=plan.source,
            memory=MemoryPart(
                worst_rank=worst.rank, peak_bytes=worst.peak_bytes, reserved_bytes=plan.reserved_bytes(worst)
            ),
            network=None if plan.network is None else NetworkPart.of(plan.network),
        )

    def value(self) -> Plan:
        """The plan that this file says."""
        axes = Axes(**self.axes.model_dump())
        return Plan(
            model=self.model,
            fingerprint=self.fingerprint,
            cluster=self.cluster,
            threads=self.threads,
            at_once=self.at_once,
            axes=axes,
            schedule=self.schedule,
            micro_batch_size=self.micro_batch_size,
            microbatches=self.microbatches,
            seq_length=self.seq_length,
            memory_limit=self.memory_limit,
            order=None if self.order is None else tuple(self.order),
            posting=self.posting,
            layers=tuple(layer.value() for layer in self.layers),
            stage_forward_s=self.stage_forward_s,
            stage_backward_s=self.stage_backward_s,
            stages=tuple(stage.value() for stage in self.stages),
            ranks=tuple(rank.value() for rank in self.ranks),
            link=self.link.value(),
            reduce_s=self.reduce_s,
            peak_flops=self.peak_flops,
            predicted=Prediction(**self.predicted.model_dump()),
            bound=Bound(self.bound.step_s, self.bound.gap),
            search=Search(self.search.considered, self.search.seconds),
            costs=dict(self.costs),
            notes=tuple(self.notes),
            device=self.device,
            zero=self.zero,
            tied_bytes=self.tied_bytes,
            dtype=self.dtype,
            process_bytes=self.process_bytes,
            sum_link=None if self.sum_link is None else self.sum_link.value(),
            trainer=self.trainer,
            speeds=None if self.speeds is None else tuple(self.speeds),
            memory_limits=None if self.memory_limits is None else tuple(self.memory_limits),
            source=self.source,
            network=None if self.network is None else self.network.value(axes.processes // axes.pp),
        )


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as `plan --json` prints it and plan.json holds it.

    Raises:
        InputError: a figure is beyond what the file holds.
    """
    with refused_as(f"the plan of {plan.model}"):
        return PlanDocument.of(plan).model_dump()


def save_plan(plan: Plan, path: Path) -> None:
    """Write plan.json, atomically."""
    write_json(path, plan_json(plan))


def load_plan(path: Path) -> Plan:
    """Read plan.json.

    Raises:
        InputError: the file is not a plan; its layers, stages and ranks do not make one; or the program that it
            makes is not legal or needs more memory than it allows.
    """
    document = read_document(path, PlanDocument)
    mistake = _layers_mistake(document) or _ranks_mistake(document)
    mistake = mistake or _figures_mistake(document) or _schedule_mistake(document)
    if mistake is not None:
        raise InputError(f"{path}: {mistake}")
    plan = document.value()
    try:
        verify_plan(plan)
    except ProgramError as error:
        raise InputError(f"{path}: {'its program' if plan.order is None else 'order'}: {error}") from None
    return plan


def _figures_mistake(document: PlanDocument) -> str | None:
    """Together, too, figures must stay within what readers can work with."""
    try:
        check_size(len(document.stages), document.microbatches)
    except InputError as error:
        return f"microbatches: {error}"
    if document.at_once > len(document.ranks):
        return f"at_once: is {document.at_once}; there are {len(document.ranks)} ranks, and no more can compute at once"
    for key, parts in (("stages", document.stages), ("layers", document.layers)):
        held = sum(value for part in parts for name, value in part if name.endswith("_bytes"))
        if document.microbatches * held > MOST_STEP_BYTES:
            return (
                f"{key}: all bytes together, for each of {document.microbatches} microbatches, are "
                f"{document.microbatches * held:.3g}; {MOST_STEP_BYTES} or less would do"
            )
    return no_time("stages", document.stages) or no_time("layers", document.layers)


def _schedule_mistake(document: PlanDocument) -> str | None:
    """The schedule must be one that runs these stages; one made for the costs must bring its order."""
    name, stage_rank = document.schedule, [stage.rank for stage in document.stages]
    if name != AUTO and name not in SCHEDULES:
        return f"schedule: {name!r} is not known; {', '.join([*SCHEDULES, AUTO])} are"
    if name != AUTO and (reason := misfit(name, stage_rank)) is not None:
        return f"schedule: {reason}"
    made_for_costs = name == AUTO or SCHEDULES[name].by_costs
    if made_for_costs == (document.order is None):
        return (
            f"order: {name} needs each rank's order" if made_for_costs else f"order: {name} needs none; null would do"
        )
    if document.order is not None and len(document.order) != len(document.ranks):
        return f"order: has {len(document.order)} ranks; there are {len(document.ranks)}"
    return None


def _layers_mistake(document: PlanDocument) -> str | None:
    """Stages must hold layers 0 to n - 1 in order, each exactly once."""
    expected = 0
    for number, stage in enumerate(document.stages):
        for layer in stage.layers:
            if layer != expected:
                return (
                    f"stages.{number}.layers: has layer {layer} where {expected} would follow; stages hold "
                    "the model's layers in order, each exactly once"
                )
            expected += 1
    if expected != len(document.layers):
        return (
            f"stages.{len(document.stages) - 1}.layers: ends at layer {expected - 1}, but layers has "
            f"{len(document.layers)} layers, 0 to {len(document.layers) - 1}"
        )
    return None


def _ranks_mistake(document: PlanDocument) -> str | None:
    """Ranks must stand in order, and stages and ranks must agree on who holds what."""
    ranks = len(document.ranks)
    for name in ("speeds", "memory_limits"):
        given = getattr(document, name)
        if given is not None and len(given) != ranks:
            return f"{name}: has {len(given)} entries; there are {ranks} ranks, and as many would do"
    if document.axes.pp != ranks:
        return f"axes.pp: is {document.axes.pp}, but ranks has {ranks}; they should be equal"
    for number, stage in enumerate(document.stages):
        if stage.rank >= ranks:
            return f"stages.{number}.rank: is {stage.rank}; ranks go from 0 to {ranks - 1}"
    for number, rank in enumerate(document.ranks):
        if rank.rank != number:
            return f"ranks.{number}.rank: is {rank.rank}; ranks stand in order, so {number} would be right"
        held = [index for index, stage in enumerate(document.stages) if stage.rank == number]
        if rank.stages != held:
            return f"ranks.{number}.stages: is {rank.stages}, but by their own rank the stages here are {held}"
    return None
