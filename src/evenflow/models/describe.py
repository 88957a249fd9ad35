"""Describe a model by tracing it: parameters, exact FLOPs and bytes of each layer, without allocating anything.

A layer costs what a stage that holds it alone costs, less what a stage without layers costs. Layers with the
same modules, shapes and settings do the same work and are traced once, and at another microbatch or sequence only where
what is known does not tell (`models.functions`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from evenflow.errors import InputError
from evenflow.models.anatomy import Anatomy, ConfigKey, build_skeleton, dissect, hidden_width, part_of
from evenflow.models.cut import Cut
from evenflow.models.functions import stage_functions
from evenflow.models.precision import parameter_dtypes
from evenflow.models.recording import Trace, less
from evenflow.models.shards import (
    Part,
    check_part,
    check_routing,
    expert_count,
    expert_parameters,
    key_value_heads,
    share,
)
from evenflow.models.source import ModelSource
from evenflow.models.stage import has_tied_embeddings
from evenflow.models.tied import tied_names
from evenflow.models.tp_plan import check_tensor_parallel, find_cuts
from evenflow.models.work import work_of
from evenflow.spec import GRADIENT_BYTES, Activations, Dtype, Layer, LayerKind, Model, Operator


def describe_model(
    source: ModelSource,
    micro_batch_size: int,
    seq_length: int,
    tp: int = 1,
    dtype: Dtype = "fp32",
    cp: int = 1,
    ep: int = 1,
) -> Model:
    """Describe a model at one microbatch shape: whole, or what one of `tp` processes has of it that share every layer.

    What `cp` and `ep` make of it is worked out (`models.shards`): no process here shares sequences or experts.

    Args:
        source: where it comes from.
        micro_batch_size: sequences of a microbatch.
        seq_length: tokens of each.
        tp: how many processes share every layer.
        dtype: of its weights and activations.
        cp: how many processes share every sequence.
        ep: how many share the experts.

    Raises:
        InputError: the model cannot be cut into layers, shared out, or traced at this shape.
    """
    config = source.config
    check_tensor_parallel(config, tp)
    check_part(source.name, config, seq_length, cp, ep)
    skeleton = build_skeleton(config)
    anatomy = dissect(skeleton)
    _check_length(source, seq_length)
    shape = (micro_batch_size, seq_length)
    signatures = [_signature(skeleton, anatomy, layer) for layer in range(len(anatomy.layers))]
    cuts = find_cuts(skeleton, tp)
    parts = _Parts(
        skeleton, anatomy, cuts, parameter_dtypes(config, dtype), expert_parameters(skeleton, expert_count(config)), ep
    )
    with _saying_what_prevents(source.name, anatomy):
        traces = _traces(config, signatures, shape, tp, dtype, parts.part(cp, tp, dtype))
    layers = parts.layers(signatures, traces)
    if ep > 1:
        check_routing(source.name, ep, [layer.exchanged for layer in layers if layer.expert_gradient_bytes])
    return Model(
        name=source.name,
        architecture=type(skeleton).__name__,
        vocab_size=config.get_text_config().vocab_size,
        hidden_size=hidden_width(config, anatomy),
        tied_embeddings=has_tied_embeddings(config, skeleton),
        micro_batch_size=micro_batch_size,
        seq_length=seq_length,
        layers=layers,
        tied_bytes=parts.size(tied_names(anatomy)),
        tp=tp,
        whole_flops=_whole_flops(config, signatures, shape, dtype) if tp * cp > 1 else 0,
        dtype=dtype,
        cp=cp,
        ep=ep,
    )


@contextmanager
def _saying_what_prevents(name: str, anatomy: Anatomy) -> Iterator[None]:
    """Of a model that cannot be traced, say also what keeps it from being split."""
    try:
        yield
    except InputError as error:
        if anatomy.obstacle is None:
            raise
        raise InputError(
            f"{name} cannot be described layer by layer ({anatomy.obstacle}): {error}. A model whose blocks run once "
            "each and hand on hidden states alone would do"
        ) from error


def _check_length(source: ModelSource, seq_length: int) -> None:
    limit = getattr(source.config, "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < seq_length:
        raise InputError(
            f"{source.name} reads at most {limit} tokens (max_position_embeddings); "
            f"--seq-length {seq_length} is too long, {limit} or less would do"
        )


@dataclass(frozen=True, slots=True)
class _Parts:
    """A model's modules and what a process has of their parameters."""

    skeleton: PreTrainedModel
    anatomy: Anatomy
    cuts: Mapping[str, Cut]
    types: Mapping[str, torch.dtype]
    experts: Set[str]
    ep: int

    def part(self, cp: int, tp: int, dtype: Dtype) -> Part:
        """Which part a process has."""
        whole = replace(self, ep=1)
        heads = key_value_heads(self.skeleton.config)
        return Part(
            tp,
            cp,
            self.ep,
            frozenset(map(whole.numbers, self.experts)) if self.ep > 1 else frozenset(),
            max(heads // tp, 1) if isinstance(heads, int) else 0,
            dtype,
        )

    def layers(self, signatures: Sequence[str], traces: Mapping[str, Trace]) -> tuple[Layer, ...]:
        """All layers; a parameter that several have is the first one's."""
        found: list[Layer] = []
        counted: set[str] = set()
        for layer, signature in enumerate(signatures):
            own = {name for name in self.anatomy.parameters if _belongs(self.anatomy, layer, name)} - counted
            counted |= own
            found.append(self.layer(layer, signature, traces[signature], own))
        return tuple(found)

    def layer(self, number: int, signature: str, trace: Trace, own: Set[str]) -> Layer:
        """A layer as traced, with those parameters that no layer before it has."""
        forward, inputs, weights = map(work_of, trace.ran)
        narrow = {name for name in own if self.types[name].itemsize < GRADIENT_BYTES}  # they have masters
        return Layer(
            name=self.anatomy.name(number),
            kind=_kind(number, len(self.anatomy.layers)),
            signature=signature,
            parameters=sum(self.skeleton.get_parameter(name).numel() for name in own),
            parameter_bytes=self.size(own),
            operators=tuple(
                Operator(name, trace.forward.get(name, 0), trace.backward.get(name, 0))
                for name in sorted(trace.forward.keys() | trace.backward.keys())
            ),
            weight_flops=trace.weight_flops,
            output_bytes=trace.output_bytes,
            recomputed=trace.recomputed,
            weight_bytes=trace.weight_bytes,
            forward_combined=trace.forward_combined,
            backward_combined=trace.backward_combined,
            master_bytes=GRADIENT_BYTES * sum(map(self.numbers, narrow)),
            largest_gradient_bytes=GRADIENT_BYTES * max(map(self.numbers, own), default=0),
            exchanged=trace.exchanged,
            expert_gradient_bytes=GRADIENT_BYTES * sum(map(self.numbers, own & self.experts)) if self.ep > 1 else 0,
            forward_work=forward,
            input_work=inputs,
            weight_work=weights,
            **{name: getattr(trace.kept, name) for name in Activations.__slots__},
        )

    def numbers(self, name: str) -> int:
        """How much of a parameter a process has; where it does not divide, the most."""
        whole = prod(self.cuts[name].local_shape if name in self.cuts else self.skeleton.get_parameter(name).shape)
        return whole // self.ep if name in self.experts else whole

    def size(self, names: Iterable[str]) -> int:
        """Bytes that a process has of parameters."""
        return sum(self.numbers(name) * self.types[name].itemsize for name in names)


def _traces(
    config: PretrainedConfig,
    signatures: Sequence[str],
    shape: tuple[int, int],
    tp: int,
    dtype: Dtype = "fp32",
    part: Part | None = None,
) -> dict[str, Trace]:
    """Each kind of layer, once."""
    key = ConfigKey(config)

    def trace(*layers: int) -> Trace:
        stage = stage_functions(key, layers, dtype)
        if part is None or part.is_whole:
            return stage.at(shape, tp).trace()
        is_block = any(0 < layer < len(signatures) - 1 for layer in layers)
        recording, exchanged = share(stage, shape, part, is_block)
        return replace(recording.trace(), exchanged=exchanged)

    empty = trace()
    first = {signature: layer for layer, signature in reversed(list(enumerate(signatures)))}
    return {
        signature: less(trace(layer), empty) for signature, layer in sorted(first.items(), key=lambda item: item[1])
    }


def _whole_flops(
    config: PretrainedConfig, signatures: Sequence[str], shape: tuple[int, int], dtype: Dtype = "fp32"
) -> int:
    traces = _traces(config, signatures, shape, 1, dtype)
    flops = {name: sum((*own.forward.values(), *own.backward.values())) for name, own in traces.items()}
    return sum(flops[signature] for signature in signatures)


def _kind(layer: int, layers: int) -> LayerKind:
    return "embedding" if layer == 0 else "head" if layer == layers - 1 else "block"


def _belongs(anatomy: Anatomy, layer: int, parameter: str) -> bool:
    return any(parameter == path or parameter.startswith(path + ".") for path in anatomy.layers[layer])


def _signature(model: nn.Module, anatomy: Anatomy, layer: int) -> str:
    """Equal for layers that do the same work: module types, parameter shapes and plain settings, indices aside."""
    parts: list[str] = []
    for path in anatomy.layers[layer]:
        part = part_of(model, path)
        if isinstance(part, Tensor):
            parts.append(f"{path.rpartition('.')[2]}:{tuple(part.shape)}")
            continue
        for name, module in part.named_modules():
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
