"""One rank of a plan, rehearsed on this machine: started, followed, and held against what the plan says of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from evenflow.cost import RankCost, StageCost
from evenflow.errors import ImpossibleError, InputError
from evenflow.files import save_plan
from evenflow.launch import Launcher, ThisHost, unpack
from evenflow.models import ModelSource, describe_model
from evenflow.plan import LayerPlan, Plan
from evenflow.program import (
    Action,
    Backward,
    Forward,
    InputBackward,
    Norm,
    Program,
    Step,
    WeightBackward,
    plan_program,
)
from evenflow.runtime import OptimizerSettings
from evenflow.spec import Cluster, Model
from evenflow.spec.cluster import local_cluster
from evenflow.spec.gpus import visible_gpus
from evenflow.units import format_bytes

WARM_UP_STEPS = 2  # the first steps allocate and fault pages in
DEFAULT_STEPS = 5
_ALIKE = 0.01  # sizes of weights that are taken to be equal

_Part = tuple[int, str]  # a stage's number, or -1 for the rank itself, and the name of a cost


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What one rank took here; its numerics mean nothing.

    Attributes:
        rank: its index on the pp axis.
        device: what it ran on: `cpu`, or a GPU's name.
        compute_s: its seconds in forwards and backwards of a step on cores of its own, without what it would wait for.
        peak_bytes: the most memory it held above what its process held before the model was built.
        stages: the mean seconds of each of its stages' actions; 0 for a kind that its program does not have.
        once: its seconds once a step, reductions not included.
    """

    rank: int
    device: str
    compute_s: float
    peak_bytes: int
    stages: tuple[StageCost, ...]
    once: RankCost


def rehearse_rank(
    plan: Plan,
    source: ModelSource,
    model: Model,
    rank: int,
    steps: int = DEFAULT_STEPS,
    said: Callable[[str], None] = lambda _: None,
    processes: int | None = None,
    launcher: Launcher | None = None,
) -> Rehearsed:
    """Run one rank of a plan here, with made-up peers.

    Where the plan's ranks are processes of this machine, as many rehearse the rank side by side as a run has: cores
    that share caches and memory are slower when all of them work, and a core that several take turns on finds its
    caches full of the others' data. Where they are more than there are cores, what is counted is the processor's time
    of each, as when layers are timed (`measure.layers.rank_clock`): the simulator shares the cores out. If memory lacks
    for so many of this one rank, only those that have cores of their own run. Figures are medians over all.

    Args:
        plan: the plan; also one for a thousand devices.
        source: its model.
        model: that described at the plan's shape, as `check_model` does.
        rank: which rank, by its index on the pp axis; of its replicas and shards the first.
        steps: how many are measured, after two of warm-up.
        said: told once what is about to run.
        processes: how many rehearse it side by side, where it is not as many as said above.
        launcher: where the processes run; by default on this host.

    Raises:
        InputError: there is no such rank.
        ImpossibleError: this machine's device has not the memory for it.
        FaultError: a process failed.
    """
    check_rank(plan, rank)
    cluster = local_cluster(threads=plan.threads)
    processes = processes or _side_by_side(plan, rank, cluster)
    check_memory(plan, rank, cluster, processes)
    said(f"rehearsing rank {rank}: {WARM_UP_STEPS + steps} steps on {cluster.device.name}")
    with tempfile.TemporaryDirectory(prefix="evenflow-") as folder:
        save_plan(plan, Path(folder) / "plan.json")
        payload = _payload(Path(folder) / "plan.json", source, model, rank, steps, cluster)
        payload["shares_cores"] = _shares_cores(plan, processes, cluster)
        reports: dict[int, list[dict[str, Any]]] = {number: [] for number in range(processes)}
        target = "evenflow.rehearse.ranks:run"
        with (launcher or ThisHost()).running("rehearsal", target, processes, payload, plan.threads) as group:
            for item in group.messages():
                if item is not None and item[1]["kind"] == "step":
                    reports[item[0]].append(item[1])
    actions = plan_program(plan).ranks[rank]
    found = [_summary(plan, rank, actions, own[WARM_UP_STEPS:]) for own in reports.values()]
    return Rehearsed(
        rank=rank,
        device=cluster.device.name,
        compute_s=median(own.compute_s for own in found),
        peak_bytes=int(median(own.peak_bytes for own in found)),
        stages=tuple(_middle(StageCost, [own.stages[stage] for own in found]) for stage in range(len(found[0].stages))),
        once=_middle(RankCost, [own.once for own in found]),
    )


def check_model(plan: Plan, source: ModelSource) -> Model:
    """Describe the model that a plan must be for; of a preset only its name and number of layers can tell.

    Raises:
        InputError: it is for another one, or its axes are not run.
    """
    not_run = {name: size for name in ("cp", "ep") if (size := getattr(plan.axes, name)) > 1}
    if not_run:
        has = " and ".join(f"{name} {size}" for name, size in not_run.items())
        would = " ".join(f"--{name} 1" for name in not_run)
        raise InputError(
            f"the plan has {has}, and evenflow's ranks, which are what is rehearsed, share out neither sequences (cp) "
            f"nor experts (ep); a plan made with {would} would do"
        )
    model = describe_model(source, plan.micro_batch_size, plan.seq_length, plan.axes.tp, plan.dtype)
    if source.is_preset:
        same = (source.name, len(model.layers)) == (plan.model, len(plan.layers))
    else:
        same = model.fingerprint == plan.fingerprint
    if not same:
        raise InputError(
            f"the plan is for {plan.model} ({len(plan.layers)} layers, fingerprint {plan.fingerprint}), not for "
            f"{source.name} as it is now ({len(model.layers)} layers, {model.fingerprint}); `evenflow plan` makes one"
        )
    return model


def held_otherwise(plan: Plan, model: Model, rank: int) -> str:
    """What is to be said where a rank's weights, as built, are not as large as the plan takes them to be; else nothing.

    A preset's plan shares out every matrix over tp, where the type that it is built as may leave some whole; and it may
    have some that this type has not, such as learned positions.
    """
    layers = [layer for stage in plan.ranks[rank].stages for layer in plan.stages[stage].layers]
    built = sum(model.layers[layer].parameter_bytes for layer in layers)
    planned = sum(plan.layers[layer].parameter_bytes for layer in layers)
    if plan.axes.tp == 1 or abs(built - planned) <= _ALIKE * planned:
        return ""
    said = f"weights of rank {rank}, as built, take {format_bytes(built)} where the plan has {format_bytes(planned)}: "
    return said + (
        f"not all is shared out over tp {plan.axes.tp}" if built > planned else "not all of them are built here"
    )


def check_rank(plan: Plan, rank: int) -> None:
    """Refuse a rank that a plan does not have.

    Raises:
        InputError: which it has.
    """
    if not 0 <= rank < len(plan.ranks):
        only = "rank 0 alone" if len(plan.ranks) == 1 else f"ranks 0 to {len(plan.ranks) - 1}"
        raise InputError(f"--rank {rank}: the plan has {only} on its pp axis; --all rehearses each distinct one")


def check_memory(plan: Plan, rank: int, cluster: Cluster, processes: int = 1) -> None:
    """Refuse a rank that this machine's device cannot hold.

    Raises:
        ImpossibleError: how much it needs, and has.
    """
    own = plan.ranks[rank].peak_bytes
    there = cluster.device.memory_bytes * (1 if cluster.device.is_gpu else cluster.devices)
    if own * processes > there:
        raise ImpossibleError(
            f"rank {rank} needs {format_bytes(own)}{f' in each of {processes} processes' if processes > 1 else ''}, "
            f"and {cluster.device.name} here has {format_bytes(there)}; a device with that much, or a rank that needs "
            "less, would do"
        )


def distinct_ranks(plan: Plan) -> dict[int, tuple[int, ...]]:
    """The ranks that differ in what they hold or do: for each first one, all that do the same."""
    program = plan_program(plan)
    found: dict[tuple[object, ...], list[int]] = {}
    for rank in range(len(plan.ranks)):
        found.setdefault(_work(plan, program, rank), []).append(rank)
    return {ranks[0]: tuple(ranks) for ranks in found.values()}


def _work(plan: Plan, program: Program, rank: int) -> tuple[object, ...]:
    """What a rank holds and does, in words that name no rank: layers without names, what it computes by own stages."""
    place = {stage: number for number, stage in enumerate(plan.ranks[rank].stages)}
    layers = [
        [layer_kind(plan.layers[layer]) for layer in plan.stages[stage].layers] for stage in plan.ranks[rank].stages
    ]
    actions = [(type(own).__name__, place[own.stage], own.microbatch) for own in program.compute_order()[rank]]
    return (str(layers), tuple(actions), plan.ranks[rank].peak_bytes)


def layer_kind(layer: LayerPlan) -> tuple[object, ...]:
    """What is equal for layers that a plan takes to cost the same: all but their names."""
    return tuple(getattr(layer, name) for name in LayerPlan.__slots__ if name != "name")


def _side_by_side(plan: Plan, rank: int, cluster: Cluster) -> int:
    """How many processes rehearse at once: on cores of this machine as many as a run has, if memory does for them."""
    if cluster.device.is_gpu or plan.cluster != "local":
        return 1
    run = local_cluster(plan.axes.processes, plan.threads)
    return run.devices if plan.ranks[rank].peak_bytes <= run.device.memory_bytes else run.at_once


def _shares_cores(plan: Plan, processes: int, cluster: Cluster) -> bool:
    """Whether so many processes are more than there are cores for."""
    return not cluster.device.is_gpu and local_cluster(processes, plan.threads).at_once < processes


def _payload(path: Path, source: ModelSource, model: Model, rank: int, steps: int, cluster: Cluster) -> dict[str, Any]:
    return {
        "plan": str(path),
        "rank": rank,
        "steps": WARM_UP_STEPS + steps,
        "gpus": len(visible_gpus()) if cluster.device.is_gpu else 0,
        "shares_cores": False,
        "config": source.config.to_json_string(use_diff=False),
        "hidden_size": model.hidden_size,
        "crossing": model.crossing or model.dtype,
        "optimizer": asdict(OptimizerSettings()),
        "made_up": True,
        "weights": [],
        "done_steps": 0,
    }


def _summary(plan: Plan, rank: int, actions: Sequence[Action], reports: Sequence[dict[str, Any]]) -> Rehearsed:
    """One process's steps: medians over them, each stage's seconds the mean of the step's actions."""
    steps = [_seconds(actions, unpack(own["spans"])) for own in reports]
    count = Counter(key for action in actions if (key := part_of(action)) is not None)
    middle = {key: median(step[key] for step in steps) / number for key, number in count.items()}
    return Rehearsed(
        rank=rank,
        device=plan.device,
        compute_s=median(sum(own for (_, name), own in step.items() if name in StageCost.__slots__) for step in steps),
        peak_bytes=reports[-1]["peak"],
        stages=tuple(
            StageCost(**{name: middle.get((stage, name), 0.0) for name in StageCost.__slots__})
            for stage in plan.ranks[rank].stages
        ),
        once=RankCost(**{name: middle.get((-1, name), 0.0) for name in RankCost.__slots__}),
    )


def _seconds(actions: Sequence[Action], moments: Sequence[float]) -> Counter[_Part]:
    """A step's seconds by what they are part of; `moments` has start and end of each action in turn."""
    found: Counter[_Part] = Counter()
    for action, start, end in zip(actions, moments[::2], moments[1::2], strict=True):
        if (key := part_of(action)) is not None:
            found[key] += end - start  # type: ignore[assignment]  # a counter adds up seconds as well
    return found


def part_of(action: Action) -> _Part | None:
    """What an action's seconds are part of: a stage's costs, or (stage -1) the rank's; None for others."""
    match action:
        case Forward(stage=stage):
            return stage, "forward_s"
        case Backward(stage=stage):
            return stage, "backward_s"
        case InputBackward(stage=stage):
            return stage, "input_s"
        case WeightBackward(stage=stage):
            return stage, "weight_s"
        case Norm():
            return -1, "norm_s"
        case Step():
            return -1, "optimizer_s"
        case _:
            return None


def _middle(kind: Any, found: Sequence[Any]) -> Any:
    return kind(**{name: median(getattr(own, name) for own in found) for name in kind.__slots__})
