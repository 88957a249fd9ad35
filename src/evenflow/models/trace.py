"""Traces one stage on fake tensors: records what its forward and backward call, and every byte that comes and goes.

What is traced is what is run: the stage itself, with the queue of weight gradients that splits a backward into halves.
So what counts as W, in FLOPs and bytes, is what that queue takes, and nothing has to be said twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

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
from evenflow.models.recording import Counted, Flops, Recording, Rerun, Run, Runs
from evenflow.models.stage import Stage
from evenflow.models.tensor_parallel import share_out
from evenflow.models.tp_plan import tp_plan_of
from evenflow.models.work import WorkRecorder
from evenflow.runtime import TORCH_DTYPES, ImaginedTensorGroup, LiveBytes, WeightGradients
from evenflow.spec import RECOMPUTES, Dtype


def record_layers(
    config: PretrainedConfig, layers: Sequence[int], batch: int, seq: int, tp: int = 1, dtype: Dtype = "fp32"
) -> Recording:
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
            return _record_stage(stage, _Feed(shape, TORCH_DTYPES[dtype]), group)
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


@dataclass(frozen=True, slots=True)
class _Feed:
    """What a stage is given: hidden states [batch, seq, width] of a type that want a gradient, and token ids."""

    shape: tuple[int, int, int]
    dtype: torch.dtype

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both, anew."""
        hidden = torch.zeros(self.shape, dtype=self.dtype, requires_grad=True)
        return hidden, torch.zeros(self.shape[:2], dtype=torch.long)


def _record_stage(stage: Stage, given: _Feed, group: ImaginedTensorGroup | None = None) -> Recording:
    queue, group = WeightGradients(stage), group or ImaginedTensorGroup(1)
    counted, runs = _count(stage, queue, given, group), _run_all(stage, queue, given)
    reruns: list[Rerun] = []
    for recompute in RECOMPUTES:
        if stage.can_recompute(recompute):
            stage.set_recompute(recompute)
            again = _count(stage, queue, given, group)
            reruns.append(Rerun(recompute, replace(again, calls=()), _run_all(stage, queue, given)))
    stage.set_recompute("none")
    return Recording(counted, runs, sum(parameter.numel() for parameter in queue.parameters), tuple(reruns))


def _count(stage: Stage, queue: WeightGradients, given: _Feed, group: ImaginedTensorGroup) -> Counted:
    """FLOPs of F, I and W, and what they run.

    On its own: the counter takes operators apart, and their parts would hold bytes that the whole ones do not.
    """
    leaf, ids = given.tensors()
    ran, asked = (WorkRecorder(), WorkRecorder(), WorkRecorder()), len(group.asked)
    with ran[0], _FlopRecorder() as forward:
        output = stage(ids if stage.is_first else leaf, ids)
    group.mark()
    gradient = torch.ones_like(output)
    with ran[1], _FlopRecorder() as backward, queue.put_off(0):
        if output.requires_grad:
            torch.autograd.backward(output, gradient)
    with ran[2], _FlopRecorder() as weights:
        queue.run(0)
    return Counted(
        flops=tuple(tuple(part.noted) for part in (forward, backward, weights)),
        calls=tuple(part.calls for part in ran),
        forward_combined=tuple(group.asked[asked : group.marked]),
        backward_combined=tuple(group.asked[group.marked :]),
    )


def _run_all(stage: Stage, queue: WeightGradients, given: _Feed) -> Runs:
    first_whole, first_half = (_run(stage, queue, given, halves, is_first=True) for halves in (False, True))
    whole, half = (_run(stage, queue, given, halves, is_first=False) for halves in (False, True))
    return Runs(first_whole, first_half, whole, half)


class _Changes(LiveBytes):
    """Notes every change of the bytes that are alive."""

    def __init__(self, not_counted: Iterable[Tensor]) -> None:
        super().__init__(not_counted)
        self._noted: list[int] = []

    def taken(self) -> tuple[int, ...]:
        """Those since it was last asked."""
        noted, self._noted = tuple(self._noted), []
        return noted

    def _change(self, size: int) -> None:
        super()._change(size)
        self._noted.append(size)


def _run(stage: Stage, queue: WeightGradients, given: _Feed, halves: bool, is_first: bool) -> Run:
    """Run one microbatch as a rank does, the backward whole or in halves, the step's first or a later one."""
    if is_first:
        for parameter in stage.parameters():
            parameter.grad = None
    gradients = [parameter.grad for parameter in stage.parameters() if parameter.grad is not None]
    leaf, ids = given.tensors()
    with _Changes([*stage.parameters(), *stage.buffers(), *gradients, leaf]) as live:
        live.count([ids])
        feed = ids if stage.is_first else _Copy.apply(leaf)  # type: ignore[no-untyped-call]  # no types
        entered = live.taken()
        with _Entry(stage, live) as entry:
            output = stage(feed, ids)
        forward, output_bytes = live.taken(), output.nbytes
        root = get_gradient_edge(output) if output.requires_grad else None
        seed = torch.ones_like(output)
        seed_bytes, input_bytes, inputs = seed.nbytes, feed.nbytes, WeakSet([feed.untyped_storage()])
        del output, feed, ids
        freed_input_bytes = 0 if stage.is_first or inputs else input_bytes
        shared, handed = entry.shared(), live.taken()
        with queue.put_off(0) if halves else nullcontext():
            if root is not None:
                torch.autograd.backward((root,), (seed,))
        backward = live.taken()
        del root
        leaf.grad = None
        ended = live.taken()
        del seed
        let_go = live.taken()
        if halves:
            queue.run(0)
    return Run(entered, forward, handed, backward, ended, let_go, output_bytes, seed_bytes, freed_input_bytes, shared)


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
        self._before: WeakKeyDictionary[Any, None] = WeakKeyDictionary()
        self._known = live.alive()  # the stage's input
        paths = [path for layer in stage.layers for path in stage.anatomy.layers[layer]]
        parts = [part_of(stage.model, path) for path in paths[:1]]
        modules = [part for part in parts if isinstance(part, nn.Module)]
        self._hooks = [module.register_forward_pre_hook(self._note) for module in modules]

    def _note(self, *_: object) -> None:
        self._before = self._live.alive()

    def shared(self) -> tuple[int, ...]:
        """Bytes of each that is still held."""
        return tuple(storage.nbytes() for storage in self._before if storage not in self._known)

    def __enter__(self) -> _Entry:
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()


class _FlopRecorder(FlopCounterMode):
    """PyTorch's counter, that notes call by call, and is taught what it does not know.

    That is the CPU's attention, the sum in place, and a mixture's experts: each row of tokens is multiplied with one
    expert, whichever that is; a backward makes two such products.
    """

    def __init__(self) -> None:
        experts = torch.ops.transformers.grouped_mm_fallback
        experts_backward = torch.ops.transformers.grouped_mm_fallback_backward
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        super().__init__(
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
        self.noted: list[Flops] = []

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        if func_packet in self.flop_registry:
            count = self.flop_registry[func_packet](*args, **kwargs, out_val=out)
            self.noted.append(Flops(str(func_packet).removeprefix("aten."), int(count)))
        return out
