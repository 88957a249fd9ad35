"""Traces one stage on fake tensors: what its forward and backward compute, and which bytes they hold, to the byte.

What is traced is what is run: the stage itself, with the queue of weight gradients that splits a backward into halves.
So what counts as W, in FLOPs and bytes, is what that queue takes, and nothing has to be said twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.autograd.graph import get_gradient_edge
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PretrainedConfig

from evenflow.errors import EvenflowError, InputError, first_line
from evenflow.models.absent import allocate
from evenflow.models.anatomy import build_skeleton, dissect, hidden_width, part_of
from evenflow.models.imagined import imagined
from evenflow.models.precision import compute_in
from evenflow.models.stage import Stage
from evenflow.models.tensor_parallel import share_out
from evenflow.models.tp_plan import tp_plan_of
from evenflow.models.work import WorkRecorder, left_of
from evenflow.runtime import TORCH_DTYPES, ImaginedTensorGroup, LiveBytes, WeightGradients
from evenflow.spec import GRADIENT_BYTES, RECOMPUTES, Activations, Again, Combined, Dtype, LayerOperator

_Ran = tuple[tuple[LayerOperator, ...], tuple[LayerOperator, ...], tuple[LayerOperator, ...]]


@dataclass(frozen=True, slots=True)
class Trace:
    """What one microbatch of a stage did.

    Attributes:
        forward: FLOPs of the forward by operator.
        backward: FLOPs of the backward by operator, recomputation not included.
        weight_flops: those of the backward that the queue of weight gradients makes.
        weight_bytes: the gradients that it makes.
        output_bytes: its output.
        kept: bytes where every layer keeps what its backward needs.
        recomputed: what it does in each way in which its blocks have something to run again.
        forward_combined: what the forward put together over tp.
        backward_combined: what the backward did.
        ran: every operator of forward, of the backward's half for the input, and of the half for the weights.
    """

    forward: dict[str, int]
    backward: dict[str, int]
    weight_flops: int
    weight_bytes: int
    output_bytes: int
    kept: Activations
    recomputed: tuple[Again, ...]
    forward_combined: tuple[Combined, ...] = ()
    backward_combined: tuple[Combined, ...] = ()
    ran: _Ran = ((), (), ())


def trace_layers(
    config: PretrainedConfig, layers: Sequence[int], batch: int, seq: int, tp: int = 1, dtype: Dtype = "fp32"
) -> Trace:
    """Trace a stage of `layers` at a microbatch of `batch` x `seq` tokens, or its part of one shared out over `tp`.

    Raises:
        InputError: the model cannot be traced at this shape.
    """
    try:
        skeleton = build_skeleton(config)
        group = ImaginedTensorGroup(tp)
        plan = tp_plan_of(skeleton) if tp > 1 else None
        stage = Stage(skeleton, dissect(skeleton), layers)
        if plan is not None:
            share_out(stage, plan, group).cut()
        with imagined():
            allocate(stage)
            compute_in(stage, dtype)
            shape = batch, seq, hidden_width(config, stage.anatomy)
            return _trace_stage(stage, _Feed(shape, TORCH_DTYPES[dtype]), group)
    except EvenflowError:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise InputError(
            f"{config.model_type} cannot be traced: what it runs hangs on values that only a run has ({error.func}), "
            "as where tokens are sorted by the experts that they are routed to"
        ) from None
    except Exception as error:  # any model may do what cannot be traced
        text = first_line(error)
        raise InputError(f"{config.model_type} cannot be traced at {batch} x {seq} tokens: {text}") from None


def less(trace: Trace, empty: Trace) -> Trace:
    """A stage's own work and bytes: its trace less that of a stage without layers."""

    def own(bytes: Activations) -> Activations:
        return replace(
            bytes,
            saved_bytes=bytes.saved_bytes - empty.kept.saved_bytes,
            pending_bytes=bytes.pending_bytes - empty.kept.pending_bytes,
        )

    return Trace(
        forward=_minus(trace.forward, empty.forward),
        backward=_minus(trace.backward, empty.backward),
        weight_flops=trace.weight_flops - empty.weight_flops,
        weight_bytes=trace.weight_bytes - empty.weight_bytes,
        output_bytes=trace.output_bytes,
        kept=own(trace.kept),
        recomputed=tuple(replace(again, activations=own(again.activations)) for again in trace.recomputed),
        forward_combined=trace.forward_combined,
        backward_combined=trace.backward_combined,
        ran=(
            left_of(trace.ran[0], empty.ran[0]),
            left_of(trace.ran[1], empty.ran[1]),
            left_of(trace.ran[2], empty.ran[2]),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Feed:
    """What a stage is given: hidden states [batch, seq, width] of a type that want a gradient, and token ids."""

    shape: tuple[int, int, int]
    dtype: torch.dtype

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both, anew."""
        hidden = torch.zeros(self.shape, dtype=self.dtype, requires_grad=True)
        return hidden, torch.zeros(self.shape[:2], dtype=torch.long)


def _trace_stage(stage: Stage, given: _Feed, group: ImaginedTensorGroup | None = None) -> Trace:
    queue, group = WeightGradients(stage), group or ImaginedTensorGroup(1)
    counted = _count_flops(stage, queue, given, group)
    forward, backward, weights = counted.flops
    combined, marked = tuple(group.asked), group.marked
    kept, output_bytes = _count_bytes(stage, queue, given)
    recomputed: list[Again] = []
    for recompute in RECOMPUTES:
        if stage.can_recompute(recompute):
            stage.set_recompute(recompute)
            first = len(group.asked)
            flops = sum(sum(own.values()) for own in _count_flops(stage, queue, given, group).flops)
            again = Counter(group.asked[first:]) - Counter(combined)
            more = flops - sum(sum(own.values()) for own in (forward, backward, weights))
            activations, _ = _count_bytes(stage, queue, given)
            recomputed.append(Again(recompute, more, tuple(again.elements()), activations))
    stage.set_recompute("none")
    return Trace(
        forward=forward,
        backward={name: backward.get(name, 0) + weights.get(name, 0) for name in sorted(backward | weights)},
        weight_flops=sum(weights.values()),
        weight_bytes=GRADIENT_BYTES * sum(parameter.numel() for parameter in queue.parameters),
        output_bytes=output_bytes,
        kept=kept,
        recomputed=tuple(recomputed),
        forward_combined=combined[:marked],
        backward_combined=combined[marked:],
        ran=counted.ran,
    )


@dataclass(frozen=True, slots=True)
class _Counted:
    """FLOPs by operator, and every operator: of F, I and W."""

    flops: tuple[dict[str, int], dict[str, int], dict[str, int]]
    ran: _Ran


def _count_flops(stage: Stage, queue: WeightGradients, given: _Feed, group: ImaginedTensorGroup) -> _Counted:
    """FLOPs of F, I and W, and what they run.

    On its own: the counter takes operators apart, and their parts would hold bytes that the whole ones do not.
    """
    leaf, ids = given.tensors()
    ran = WorkRecorder(), WorkRecorder(), WorkRecorder()
    with ran[0], _flop_counter() as forward:
        output = stage(ids if stage.is_first else leaf, ids)
    group.mark()
    gradient = torch.ones_like(output)
    with ran[1], _flop_counter() as backward, queue.put_off(0):
        if output.requires_grad:
            torch.autograd.backward(output, gradient)
    with ran[2], _flop_counter() as weights:
        queue.run(0)
    return _Counted(
        (_by_operator(forward), _by_operator(backward), _by_operator(weights)),
        (ran[0].operators, ran[1].operators, ran[2].operators),
    )


def _count_bytes(stage: Stage, queue: WeightGradients, given: _Feed) -> tuple[Activations, int]:
    """The activations of a stage, and the bytes of its output."""
    first_whole, first_half = (_run(stage, queue, given, halves, is_first=True) for halves in (False, True))
    whole, half = (_run(stage, queue, given, halves, is_first=False) for halves in (False, True))
    activations = Activations(
        saved_bytes=whole.saved_bytes,
        shared_bytes=whole.shared_bytes,
        pending_bytes=half.left_bytes,
        forward_peak_bytes=whole.forward_peak_bytes,
        backward_peak_bytes=whole.backward_peak_bytes,
        input_peak_bytes=half.backward_peak_bytes,
        first_backward_peak_bytes=first_whole.backward_peak_bytes,
        first_input_peak_bytes=first_half.backward_peak_bytes,
        kept_gradient_bytes=half.kept_gradient_bytes,
        freed_input_bytes=whole.freed_input_bytes,
    )
    return activations, whole.output_bytes


@dataclass(frozen=True, slots=True)
class _Run:
    """Bytes of one forward and one backward; `left_bytes` is what the backward leaves, the kept gradient in it."""

    output_bytes: int
    saved_bytes: int
    shared_bytes: int
    left_bytes: int
    kept_gradient_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int
    freed_input_bytes: int


def _run(stage: Stage, queue: WeightGradients, given: _Feed, halves: bool, is_first: bool) -> _Run:
    """Run one microbatch as a rank does, the backward whole or in halves, the step's first or a later one."""
    if is_first:
        for parameter in stage.parameters():
            parameter.grad = None
    gradients = [parameter.grad for parameter in stage.parameters() if parameter.grad is not None]
    leaf, ids = given.tensors()
    with LiveBytes([*stage.parameters(), *stage.buffers(), *gradients, leaf]) as live:
        live.count([ids])
        feed = ids if stage.is_first else _Copy.apply(leaf)  # type: ignore[no-untyped-call]  # no types
        began = live.now
        with _Entry(stage, live) as entry:
            output = stage(feed, ids)
        forward_peak, output_bytes = live.peak - began, output.nbytes
        root = get_gradient_edge(output) if output.requires_grad else None
        seed = torch.ones_like(output)
        entered, input_bytes = WeakSet([feed.untyped_storage()]), feed.nbytes
        del output, feed, ids
        freed_input = 0 if stage.is_first or entered else input_bytes
        saved, shared = live.now - seed.nbytes, entry.shared_bytes()
        live.mark()
        started = live.now
        with queue.put_off(0) if halves else nullcontext():
            if root is not None:
                torch.autograd.backward((root,), (seed,))
        backward_peak = live.peak - started
        del root
        leaf.grad = None
        gradient_bytes, before = seed.nbytes, live.now
        del seed
        left = live.now
        kept_gradient = gradient_bytes if left == before else 0
        if halves:
            queue.run(0)
    return _Run(output_bytes, saved, shared, left, kept_gradient, forward_peak, backward_peak, freed_input)


class _Copy(torch.autograd.Function):
    """A stage's input as the output of a layer before it would be: kept only by who saves it."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:  # noqa: ARG004 - autograd passes it
        return leaf.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004 - autograd passes it
        return gradients[0]


class _Entry:
    """Notes what was there when a stage's first own module began: what of it is kept, all layers of a stage share."""

    def __init__(self, stage: Stage, live: LiveBytes) -> None:
        self._live = live
        self._before: WeakSet[Any] = WeakSet()
        self._known = live.alive()  # the stage's input
        paths = [path for layer in stage.layers for path in stage.anatomy.layers[layer]]
        parts = [part_of(stage.model, path) for path in paths[:1]]
        modules = [part for part in parts if isinstance(part, nn.Module)]
        self._hooks = [module.register_forward_pre_hook(self._note) for module in modules]

    def _note(self, *_: object) -> None:
        self._before = self._live.alive()

    def shared_bytes(self) -> int:
        """Bytes of it that are still held."""
        return sum(storage.nbytes() for storage in self._before if storage not in self._known)

    def __enter__(self) -> _Entry:
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _flop_counter() -> FlopCounterMode:
    """PyTorch's counter, taught what it does not know: the CPU's attention, the sum in place, a mixture's experts.

    Each row of tokens is multiplied with one expert, whichever that is; a backward makes two such products.
    """
    experts = torch.ops.transformers.grouped_mm_fallback
    experts_backward = torch.ops.transformers.grouped_mm_fallback_backward
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return FlopCounterMode(
        display=False,
        custom_mapping={
            attention: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
            backward: lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(
                gradient, query, key, value
            ),
            experts: lambda rows, weight, *_, **__: 2 * rows[0] * weight[1] * weight[2],
            experts_backward: lambda rows, weight, *_, **__: 4 * rows[0] * weight[1] * weight[2],
            torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1],
        },
    )


def _by_operator(counter: FlopCounterMode) -> dict[str, int]:
    counts = counter.get_flop_counts().get("Global", {})
    return {str(operator).removeprefix("aten."): int(flops) for operator, flops in counts.items()}


def _minus(counts: dict[str, int], less: dict[str, int]) -> dict[str, int]:
    left = {name: count - less.get(name, 0) for name, count in counts.items()}
    return {name: count for name, count in left.items() if count > 0}
