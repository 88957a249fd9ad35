"""Times real layers: F, B, I, W, recomputation, norm and update of each kind of layer, on one of many busy ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PretrainedConfig

from evenflow.models import (
    Stage,
    build_skeleton,
    build_stage,
    compute_in,
    draw_weights,
    share_out,
    tp_plan_of,
)
from evenflow.runtime import (
    TORCH_DTYPES,
    Mesh,
    Optimizer,
    OptimizerSettings,
    WeightGradients,
    local,
    plain_part,
    synchronize,
)
from evenflow.spec import Dtype

# Blocks are timed two in a row: what a single one would find in the cache, a stage's do not.
_IN_A_ROW = 2
_WARM_UP_ROUNDS = 2
_CPU = torch.device("cpu")

_Way = Literal["whole", "halves", "selective", "full"]  # the last two whole, with a part of the forward run again
_WAYS: tuple[_Way, ...] = get_args(_Way)

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """What was timed of one layer, in seconds: once a microbatch, then once a step."""

    forward_s: float
    backward_s: float
    input_s: float
    weight_s: float
    norm_s: float
    optimizer_s: float
    recompute_s: float
    selective_s: float


def rank_clock(threads: int, has_own_cores: bool, device: torch.device = _CPU) -> Clock:
    """Seconds as they pass for a rank whose cores are its own.

    A GPU is waited for at each reading, so that what was launched before is counted before. Where ranks share
    cores their time is not that on the wall: then the processor's time of this process is read, spread over its
    threads, and the simulator shares the cores out.
    """
    if device.type == "cuda":

        def clock() -> float:
            synchronize(device)
            return time.perf_counter()

        return clock
    return time.perf_counter if has_own_cores else lambda: time.process_time() / threads


@dataclass(frozen=True, slots=True)
class Repeats:
    """How often to time: at least `least` rounds of each kind, then until `seconds` are over."""

    least: int = 7
    seconds: float = 6.0


@dataclass(slots=True)
class _TimedStage:
    """A stage that holds one kind of layer, and how long its passes took in each round."""

    stage: Stage
    weight_gradients: WeightGradients
    forwards: list[float] = field(default_factory=list)
    backwards: list[float] = field(default_factory=list)
    inputs: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    wholes: list[float] = field(default_factory=list)  # forward and whole backward together
    recomputed: dict[_Way, list[float]] = field(default_factory=dict)  # the same with a part of the forward run again

    def take(self, way: _Way, forward_s: float, backward_s: float, weight_s: float) -> None:
        """Note one microbatch."""
        if way in ("selective", "full"):
            self.recomputed.setdefault(way, []).append(forward_s + backward_s)
            return
        self.forwards.append(forward_s)
        if way == "whole":
            self.backwards.append(backward_s)
            self.wholes.append(forward_s + backward_s)
        else:
            self.inputs.append(backward_s)
            self.weights.append(weight_s)

    def again_s(self, way: _Way) -> float:
        """What running a part of the forward again adds; nothing where there is no such part."""
        return max(median(self.recomputed[way]) - median(self.wholes), 0.0) if way in self.recomputed else 0.0

    @property
    def passes(self) -> tuple[Sequence[float], ...]:
        """Seconds of each round, by kind of pass, none in two of them."""
        return self.forwards, self.backwards, self.inputs, self.weights, *self.recomputed.values()

    def runs(self, way: _Way) -> bool:
        """Whether the stage has anything to run in this way."""
        return way not in ("selective", "full") or self.stage.can_recompute(way)


def time_layers(
    config: PretrainedConfig,
    signatures: Sequence[str],
    shape: tuple[int, int, int],
    repeats: Repeats,
    mesh: Mesh,
    clock: Clock,
    together: Callable[[], None],
    device: torch.device = _CPU,
    dtype: Dtype = "fp32",
) -> tuple[list[LayerTimes], float, float]:
    """Time every layer of a model, each kind once.

    All kinds take turns, round after round, so that each finds the cache as a run leaves it and a moment's
    disturbance falls on all alike; ranks begin at different kinds, since in a run they do different work too.

    Args:
        config: the model's configuration.
        signatures: for each layer, what is equal for layers that cost the same.
        shape: batch, seq and hidden size of a microbatch.
        repeats: how often.
        mesh: this rank's place; those that share a stage time each layer together, sums included.
        clock: reads the seconds that passed for this rank.
        together: returns once all ranks are here, so that all are busy at once.
        device: where this rank computes.
        dtype: of weights and activations.

    Returns:
        The layers' costs, and a stage's own forward and backward seconds.
    """
    rows = {
        signature: [layer for layer, own in enumerate(signatures) if own == signature][:_IN_A_ROW]
        for signature in signatures
    }
    empty = _build(config, (), mesh, device, dtype)
    timed = {signature: _build(config, row, mesh, device, dtype) for signature, row in rows.items()}
    _time_rounds([empty, *timed.values()], config, shape, repeats, mesh, clock, together, device, dtype)
    unrest = _unrest([empty, *timed.values()])
    empty_forward, empty_backward = median(empty.forwards), median(empty.backwards)
    costs: dict[str, LayerTimes] = {}
    for signature, own in timed.items():
        norm, update = _time_update(_parts(own.stage), clock, together)
        count = len(rows[signature])
        each = unrest / count
        costs[signature] = LayerTimes(
            forward_s=max(median(own.forwards) - empty_forward, 0.0) * each,
            backward_s=max(median(own.backwards) - empty_backward, 0.0) * each,
            input_s=max(median(own.inputs or own.backwards) - empty_backward, 0.0) * each,
            weight_s=median(own.weights) * each if own.weights else 0.0,
            norm_s=norm * each,
            optimizer_s=update * each,
            recompute_s=own.again_s("full") * each,
            selective_s=own.again_s("selective") * each,
        )
    return [costs[signature] for signature in signatures], empty_forward * unrest, empty_backward * unrest


def _unrest(timed: Sequence[_TimedStage]) -> float:
    """How much longer than its median a pass takes on average: 1 where nothing ever disturbs it.

    A step adds passes up, so its length goes by their mean. That of one kind alone would be of too few rounds, so its
    median is taken, which a single disturbance leaves as it is, times what all kinds together say of disturbances.
    """
    kinds = [seconds for own in timed for seconds in own.passes if seconds]
    return sum(map(sum, kinds)) / sum(median(own) * len(own) for own in kinds)


def _build(
    config: PretrainedConfig, layers: Sequence[int], mesh: Mesh, device: torch.device, dtype: Dtype
) -> _TimedStage:
    stage = build_stage(config, layers, must_equal=False)
    if mesh.shards is not None:
        share_out(stage, tp_plan_of(build_skeleton(config)), mesh.shards)
    draw_weights(stage, seed=0)
    compute_in(stage, dtype)
    stage.to(device).train()
    if stage.sharing is not None and mesh.tp is not None:
        stage.sharing.distribute(mesh.tp)
    return _TimedStage(stage, WeightGradients(stage))


def _parts(stage: Stage) -> dict[str, torch.nn.Parameter]:
    """What this rank updates of a stage: its parameters, or its plain parts of them, with their gradients."""
    parts: dict[str, torch.nn.Parameter] = {}
    for name, parameter in stage.named_model_parameters().items():
        parts[name] = plain_part(parameter)
        parts[name].grad = None if parameter.grad is None else local(parameter.grad)
    return parts


def _time_rounds(
    stages: Sequence[_TimedStage],
    config: PretrainedConfig,
    shape: tuple[int, int, int],
    repeats: Repeats,
    mesh: Mesh,
    clock: Clock,
    together: Callable[[], None],
    device: torch.device,
    dtype: Dtype,
) -> None:
    """Forward and backward of every stage in turn, until enough rounds are done; warm-up rounds are forgotten.

    The backward takes turns too: whole, in halves (which stages that are shared out do not run), and whole with
    attention or blocks recomputed. Ranks that share stages keep step, and end when the first of them would.
    """
    batch, seq, hidden = shape
    ids = torch.randint(0, config.get_text_config().vocab_size, (batch, seq), device=device)
    states, gradient = (torch.randn(batch, seq, hidden, device=device, dtype=TORCH_DTYPES[dtype]) for _ in range(2))
    first = mesh.at.pp % len(stages)
    ways: tuple[_Way, ...] = tuple(
        way for way in _WAYS if any(own.runs(way) for own in stages) and (way != "halves" or mesh.shards is None)
    )
    order = [*stages[first:], *stages[:first]]
    together()
    rounds = 0
    end = time.perf_counter() + repeats.seconds
    while rounds < len(ways) * (repeats.least + _WARM_UP_ROUNDS) or _agreed(time.perf_counter() < end, mesh):
        way = ways[rounds % len(ways)]
        for own in order:
            if not own.runs(way):
                continue
            leaf = ids if own.stage.is_first else states.detach().requires_grad_()
            moments = _time_once(own, leaf, ids, None if own.stage.is_last else gradient, way, clock)
            if rounds >= len(ways) * _WARM_UP_ROUNDS:
                own.take(way, *moments)
        rounds += 1


def _agreed(goes_on: bool, mesh: Mesh) -> bool:
    """Whether all that share stages go on."""
    if mesh.shards is None:
        return goes_on
    wanting = torch.tensor([float(goes_on)])
    mesh.shards.add(wanting)
    return wanting.item() == mesh.shards.size


def _time_once(
    own: _TimedStage, leaf: Tensor, ids: Tensor, gradient: Tensor | None, way: _Way, clock: Clock
) -> tuple[float, float, float]:
    """Seconds of one forward, of its backward or the half for its input, and of the half for its weights."""
    own.stage.set_recompute(way if way in ("selective", "full") else "none")
    start = clock()
    output = own.stage(leaf, ids)
    middle = clock()
    with own.weight_gradients.put_off(0) if way == "halves" else nullcontext():
        if output.requires_grad:
            torch.autograd.backward(output, gradient)
    then = clock()
    if way == "halves":
        own.weight_gradients.run(0)
    end = clock()
    own.stage.set_recompute("none")
    return middle - start, then - middle, end - then


def _time_update(
    parameters: dict[str, torch.nn.Parameter], clock: Clock, together: Callable[[], None]
) -> tuple[float, float]:
    optimizer = Optimizer(parameters, tuple(parameters), OptimizerSettings())
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    norms: list[float] = []
    updates: list[float] = []
    together()
    for _ in range(5):
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        start = clock()
        vector = optimizer.gradient_norms()
        middle = clock()
        optimizer.step(vector, 1e-6)
        norms.append(middle - start)
        updates.append(clock() - middle)
    return median(norms[1:]), median(updates[1:])


def time_matmul(
    clock: Clock, device: torch.device = _CPU, size: int = 1024, dtype: torch.dtype = torch.float32
) -> float:
    """Floating-point operations a second of a large matrix product."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds: list[float] = []
    for _ in range(8):
        start = clock()
        _product: Tensor = left @ right
        seconds.append(clock() - start)
    return 2 * size**3 / min(seconds)
