"""Describe a model by tracing it: parameters, exact FLOPs and bytes of each layer, without allocating anything.

A layer costs what a stage that holds it alone costs, less what a stage without layers costs. Layers with the
same modules, shapes and settings do the same work and are traced once.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PretrainedConfig, masking_utils

from evenflow.errors import EvenflowError, InputError, first_line
from evenflow.models.anatomy import Anatomy, build_skeleton, dissect
from evenflow.models.source import ModelSource
from evenflow.models.stage import Stage, allocate, has_tied_embeddings
from evenflow.spec import Layer, LayerKind, Model, Operator


@dataclass(frozen=True, slots=True)
class _Trace:
    """What one forward and backward of a stage did."""

    forward: dict[str, int]
    backward: dict[str, int]
    weight_flops: int
    saved_bytes: int
    pending_bytes: int
    output_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int


def describe_model(source: ModelSource, micro_batch_size: int, seq_length: int) -> Model:
    """Trace a model at one microbatch shape.

    Raises:
        InputError: the model cannot be cut into layers, or cannot be traced at this shape.
    """
    config = source.config
    skeleton = build_skeleton(config)
    anatomy = dissect(skeleton)
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < seq_length:
        raise InputError(
            f"{source.name} reads at most {limit} tokens (max_position_embeddings); "
            f"--seq-length {seq_length} is too long, {limit} or less would do"
        )
    tied = has_tied_embeddings(config, skeleton)
    signatures = [_signature(skeleton, anatomy, layer) for layer in range(len(anatomy.layers))]
    kinds = [_kind(layer, len(anatomy.layers)) for layer in range(len(anatomy.layers))]
    empty = _trace(config, (), micro_batch_size, seq_length)
    traces: dict[str, _Trace] = {}
    layers: list[Layer] = []
    counted: set[str] = set()
    for layer, signature in enumerate(signatures):
        if signature not in traces:
            traces[signature] = _less(_trace(config, (layer,), micro_batch_size, seq_length), empty)
        trace = traces[signature]
        own = {name for name in anatomy.parameters if _belongs(anatomy, layer, name)} - counted
        counted |= own
        parameters = sum(skeleton.get_parameter(name).numel() for name in own)
        layers.append(
            Layer(
                name=anatomy.name(layer),
                kind=kinds[layer],
                signature=signature,
                parameters=parameters,
                parameter_bytes=4 * parameters,
                operators=tuple(
                    Operator(name, trace.forward.get(name, 0), trace.backward.get(name, 0))
                    for name in sorted(trace.forward.keys() | trace.backward.keys())
                ),
                weight_flops=trace.weight_flops,
                saved_bytes=trace.saved_bytes,
                pending_bytes=trace.pending_bytes,
                output_bytes=trace.output_bytes,
                forward_peak_bytes=trace.forward_peak_bytes,
                backward_peak_bytes=trace.backward_peak_bytes,
            )
        )
    return Model(
        name=source.name,
        architecture=type(skeleton).__name__,
        vocab_size=config.get_text_config().vocab_size,
        hidden_size=_hidden_size(config),
        tied_embeddings=tied,
        micro_batch_size=micro_batch_size,
        seq_length=seq_length,
        layers=tuple(layers),
    )


def _kind(layer: int, layers: int) -> LayerKind:
    return "embedding" if layer == 0 else "head" if layer == layers - 1 else "block"


def _hidden_size(config: PretrainedConfig) -> int:
    size: int = config.get_text_config().hidden_size
    return size


def _belongs(anatomy: Anatomy, layer: int, parameter: str) -> bool:
    return any(parameter.startswith(path + ".") for path in anatomy.layers[layer])


def _signature(model: nn.Module, anatomy: Anatomy, layer: int) -> str:
    """Equal for layers that do the same work: module types, parameter shapes and plain settings, indices aside."""
    parts: list[str] = []
    for path in anatomy.layers[layer]:
        for name, module in model.get_submodule(path).named_modules():
            settings = {
                key: value
                for key, value in vars(module).items()
                if not key.startswith("_")
                and isinstance(value, bool | int | float | str)
                and "idx" not in key
                and key != "training"
            }
            shapes = [tuple(parameter.shape) for parameter in module.parameters(recurse=False)]
            parts.append(f"{name}:{type(module).__name__}:{sorted(settings.items())}:{shapes}")
    return hashlib.blake2b("|".join(parts).encode(), digest_size=8).hexdigest()


def _trace(config: PretrainedConfig, layers: Sequence[int], batch: int, seq: int) -> _Trace:
    """Trace a stage of `layers` on fake tensors."""
    try:
        skeleton = build_skeleton(config)
        stage = Stage(skeleton, dissect(skeleton), layers)
        with FakeTensorMode(allow_non_fake_inputs=True), _unpacked_sequences():
            allocate(stage)
            return _trace_stage(stage, batch, seq, _hidden_size(config))
    except EvenflowError:
        raise
    except Exception as error:  # any model may do what cannot be traced
        text = first_line(error)
        raise InputError(f"{config.model_type} cannot be traced at {batch} x {seq} tokens: {text}") from None


def _trace_stage(stage: Stage, batch: int, seq: int, hidden: int) -> _Trace:
    ids = torch.zeros(batch, seq, dtype=torch.long)
    feed = ids if stage.is_first else torch.zeros(batch, seq, hidden, requires_grad=True)
    for parameter in stage.parameters():
        parameter.grad = torch.zeros_like(parameter)
    held = [*stage.parameters(), *stage.buffers()]
    gradients = [parameter.grad for parameter in stage.parameters() if parameter.grad is not None]
    kept = _Saved(held)
    with _LiveBytes([*held, *gradients, feed, ids]) as live:
        with _flop_counter() as forward, kept, _Linears(stage) as linears:
            output = stage(feed, ids)
        forward_peak, live.peak = live.peak, live.now
        start = live.now
        gradient = torch.ones_like(output)
        with _flop_counter() as backward:
            if output.requires_grad:
                output.backward(gradient)
        return _Trace(
            forward=_by_operator(forward),
            backward=_by_operator(backward),
            weight_flops=linears.flops,
            saved_bytes=kept.bytes,
            pending_bytes=linears.bytes,
            output_bytes=output.nbytes,
            forward_peak_bytes=forward_peak,
            backward_peak_bytes=live.peak - start,
        )


def _flop_counter() -> FlopCounterMode:
    """PyTorch's counter, taught the CPU's attention kernel, which it does not know."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return FlopCounterMode(
        display=False,
        custom_mapping={
            attention: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
            backward: lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(
                gradient, query, key, value
            ),
        },
    )


def _unpacked_sequences() -> AbstractContextManager[object]:
    """Answer for the trace what fake tensors cannot: our sequences are not packed, so no mask is needed.

    Without this the trace would hold a mask of seq x seq that a run never makes.
    """
    return patch.object(masking_utils, "find_packed_sequence_indices", lambda *_: None)


def _by_operator(counter: FlopCounterMode) -> dict[str, int]:
    counts = counter.get_flop_counts().get("Global", {})
    return {str(operator).removeprefix("aten."): int(flops) for operator, flops in counts.items()}


def _less(trace: _Trace, empty: _Trace) -> _Trace:
    return _Trace(
        forward=_minus(trace.forward, empty.forward),
        backward=_minus(trace.backward, empty.backward),
        weight_flops=trace.weight_flops - empty.weight_flops,
        saved_bytes=trace.saved_bytes - empty.saved_bytes,
        pending_bytes=trace.pending_bytes - empty.pending_bytes,
        output_bytes=trace.output_bytes,
        forward_peak_bytes=trace.forward_peak_bytes,
        backward_peak_bytes=trace.backward_peak_bytes,
    )


def _minus(counts: dict[str, int], less: dict[str, int]) -> dict[str, int]:
    left = {name: count - less.get(name, 0) for name, count in counts.items()}
    return {name: count for name, count in left.items() if count > 0}


class _Saved:
    """Counts the bytes that autograd keeps for backward: distinct storages, parameters and buffers aside."""

    def __init__(self, not_counted: Sequence[Tensor]) -> None:
        self.seen = {tensor.untyped_storage()._cdata for tensor in not_counted}
        self.bytes = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)


class _Linears:
    """Watches a stage's linear layers: what making their weights' gradients takes, and from which bytes."""

    def __init__(self, stage: nn.Module) -> None:
        self.linears = [module for module in stage.modules() if isinstance(module, nn.Linear)]
        self.flops = 0
        self.bytes = 0
        self._inputs: set[int] = set()

    def _saw(self, _linear: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        storage = inputs[0].untyped_storage()
        self.flops += 2 * output.numel() * inputs[0].shape[-1]
        self.bytes += output.nbytes
        if storage._cdata not in self._inputs:
            self._inputs.add(storage._cdata)
            self.bytes += inputs[0].nbytes

    def __enter__(self) -> _Linears:
        self._hooks = [linear.register_forward_hook(self._saw) for linear in self.linears]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors alive that were made inside it, and the most there were at once."""

    def __init__(self, not_counted: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own lacks annotations
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet(tensor.untyped_storage() for tensor in not_counted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count the storages that it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return result

    def _change(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
