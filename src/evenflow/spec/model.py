"""A model as the planner sees it: a list of indivisible layers, each with its parameters, FLOPs and bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

from evenflow.errors import InputError
from evenflow.spec.dtype import DTYPE_BYTES, GRADIENT_BYTES, Dtype
from evenflow.spec.operators import Work

LayerKind = Literal["embedding", "block", "head"]
# What a block does again in its backward: nothing, its attention's forward, or its whole forward.
Recompute = Literal["none", "selective", "full"]
RECOMPUTES: tuple[Recompute, ...] = get_args(Recompute)
Recomputes = Recompute | Sequence[Recompute]  # one for all layers, or one for each
RecomputeWish = Literal["none", "selective", "full", "auto"]  # `auto`: as little as fits the memory limit
RECOMPUTE_WISHES: tuple[RecomputeWish, ...] = get_args(RecomputeWish)


def check_recompute(value: str) -> RecomputeWish:
    """A word of the user's as the value that it is.

    Raises:
        InputError: there is no such way to recompute.
    """
    for known in RECOMPUTE_WISHES:
        if value == known:
            return known
    raise InputError(f"--recompute {value!r} is not known; {' or '.join(RECOMPUTE_WISHES)} would do")


def recompute_of(recompute: Recomputes, layer: int) -> Recompute:
    """What one of many layers does."""
    return recompute if isinstance(recompute, str) else recompute[layer]


@dataclass(frozen=True, slots=True)
class Operator:
    """One kind of kernel that a layer runs, for one microbatch.

    Attributes:
        name: the operator's name, as PyTorch's dispatcher has it (`mm`, `bmm`, attention, ...).
        forward_flops: floating-point operations of the forward pass.
        backward_flops: floating-point operations of the backward pass, recomputation not included.
    """

    name: str
    forward_flops: int
    backward_flops: int


@dataclass(frozen=True, slots=True)
class Activations:
    """Activation bytes of one layer for one microbatch; `Layer` says what each is."""

    saved_bytes: int
    shared_bytes: int
    pending_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int
    input_peak_bytes: int
    first_backward_peak_bytes: int
    first_input_peak_bytes: int
    kept_gradient_bytes: int
    freed_input_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Combined:
    """Tensors of the processes that share out a layer, put together; one call for one microbatch.

    Attributes:
        kind: added up, or collected side by side.
        size: bytes that each process brings.
    """

    kind: Literal["add", "collect"]
    size: int


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What processes that share sequences (cp) or experts (ep) hand each other of a layer in one forward.

    Attributes:
        keys_bytes: keys and values of whole sequences, which each process ends with.
        routed_bytes: hidden states of a process's own tokens, each counted once, on their way to experts.
        routed_copies: experts that a token visits.
    """

    keys_bytes: int = 0
    routed_bytes: int = 0
    routed_copies: int = 0


@dataclass(frozen=True, slots=True)
class Again:
    """What running a part of a layer's forward again, in its backward, makes of one microbatch.

    Attributes:
        recompute: which part.
        flops: floating-point operations that are run again.
        combined: what is put together again over the processes that share the layer.
        activations: the layer's bytes then.
    """

    recompute: Recompute
    flops: int
    combined: tuple[Combined, ...]
    activations: Activations


@dataclass(frozen=True, slots=True)
class Layer:
    """The smallest thing the planner moves: the embedding, one decoder block, or norm + head + loss.

    All figures are for one microbatch of the model's `micro_batch_size` x `seq_length`. Of a model whose tensors are
    shared out they are one process's, but for `parameters`.

    Attributes:
        name: the module's path in the model (`model.layers.3`).
        kind: which of the three kinds of layer it is.
        signature: equal for layers that do the same work (same modules, shapes and settings).
        parameters: number of trained parameters.
        parameter_bytes: bytes of those parameters in the training type.
        operators: what it computes.
        weight_flops: the part of its backward that makes the gradients of linear layers' weights.
        saved_bytes: activation bytes kept from forward to backward, its own input included.
        pending_bytes: bytes that those gradients are made from: linear layers' inputs and their outputs' gradients.
        output_bytes: bytes that cross to the next layer (for the head: the loss).
        forward_peak_bytes: the most that forward holds at once above what it starts from, its input.
        backward_peak_bytes: the most that backward holds at once above what it starts from: what was saved, and its
            output's gradient. The gradients of parameters are not included: they are there already.
        shared_bytes: the part of `saved_bytes` that all layers of a stage share, such as position tables and masks.
        input_peak_bytes: as `backward_peak_bytes`, of the half that makes the input's gradient and leaves pending
            what the weights' are made from.
        first_backward_peak_bytes: as `backward_peak_bytes`, of a step's first, which makes the parameters' gradients.
        first_input_peak_bytes: as `input_peak_bytes`, of a step's first, which makes those that W does not.
        kept_gradient_bytes: the part of `pending_bytes` that is the gradient of its output: nothing, or all of that.
        freed_input_bytes: its input, where its backward does not need that as it is (a layer in bf16 may keep an fp32
            copy instead): it is then not in `saved_bytes`, though a stage that begins with this layer keeps it.
        weight_bytes: the part of its gradients that W makes.
        recomputed: what each way to recompute makes of it; none for a layer that keeps its own, whatever a plan
            recomputes, and no `selective` for one without attention.
        forward_combined: what its forward puts together over the processes that share it.
        backward_combined: what its backward does, recomputation not included.
        master_bytes: fp32 copies that the optimizer keeps, of those parameters that are in less.
        state_bytes: parameters, gradients and optimizer state on one replica; 0 where that follows from the parameters.
        largest_gradient_bytes: of the parameter that has most; 0 of a preset's.
        exchanged: what its forward hands to processes that share sequences or experts; None where none do.
        expert_gradient_bytes: of the gradients of those experts that are here, where processes share them.
        forward_work: what its forward runs; None of a preset's, whose seconds are worked out from its dimensions.
        input_work: what the input half of its backward does.
        weight_work: what the weight half does.
    """

    name: str
    kind: LayerKind
    signature: str
    parameters: int
    parameter_bytes: int
    operators: tuple[Operator, ...]
    weight_flops: int
    saved_bytes: int
    pending_bytes: int
    output_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int
    shared_bytes: int = 0
    input_peak_bytes: int = 0
    first_backward_peak_bytes: int = 0
    first_input_peak_bytes: int = 0
    kept_gradient_bytes: int = 0
    weight_bytes: int = 0
    recomputed: tuple[Again, ...] = ()
    forward_combined: tuple[Combined, ...] = ()
    backward_combined: tuple[Combined, ...] = ()
    master_bytes: int = 0
    freed_input_bytes: int = 0
    state_bytes: int = 0
    largest_gradient_bytes: int = 0
    exchanged: Exchanged | None = None
    expert_gradient_bytes: int = 0
    forward_work: Work | None = None
    input_work: Work | None = None
    weight_work: Work | None = None

    def again(self, recompute: Recompute) -> Again | None:
        """What a way to recompute makes of this layer; None where it has nothing to run again."""
        return next((own for own in self.recomputed if own.recompute == recompute), None)

    def under(self, recompute: Recompute) -> Layer:
        """This layer with the bytes that it has under a way to recompute."""
        again = self.again(recompute)
        if again is None:
            return self
        return replace(self, **{name: getattr(again.activations, name) for name in Activations.__slots__})

    @property
    def forward_flops(self) -> int:
        """Floating-point operations of one forward."""
        return sum(operator.forward_flops for operator in self.operators)

    @property
    def backward_flops(self) -> int:
        """Floating-point operations of one backward, recomputation not included."""
        return sum(operator.backward_flops for operator in self.operators)


@dataclass(frozen=True, slots=True)
class Model:
    """A causal language model cut into layers, traced at one microbatch shape.

    Attributes:
        name: what the user called it.
        architecture: the Hugging Face class, such as `LlamaForCausalLM`.
        vocab_size: rows of the embedding table.
        hidden_size: width of the hidden states.
        tied_embeddings: whether the head shares the embedding's weight.
        micro_batch_size: sequences in the traced microbatch.
        seq_length: tokens of each sequence.
        layers: embedding first, head last.
        tied_bytes: of the weights that the head shares with the embedding; they are counted with the embedding.
        tp: over how many processes every layer is shared out.
        whole_flops: of one microbatch where it is shared out: then some of what each process computes, others do too.
        dtype: of its weights and activations.
        cp: over how many processes every sequence is.
        ep: over how many the experts are.
    """

    name: str
    architecture: str
    vocab_size: int
    hidden_size: int
    tied_embeddings: bool
    micro_batch_size: int
    seq_length: int
    layers: tuple[Layer, ...]
    tied_bytes: int = 0
    tp: int = 1
    whole_flops: int = 0
    dtype: Dtype = "fp32"
    cp: int = 1
    ep: int = 1

    def under(self, recompute: Recomputes) -> Model:
        """This model with the bytes that its layers have under a way to recompute; it stays the model it is."""
        layers = (layer.under(recompute_of(recompute, number)) for number, layer in enumerate(self.layers))
        return replace(self, layers=tuple(layers))

    def recomputing(self, recompute: Recomputes) -> tuple[Recompute, ...]:
        """What each layer does under a way to recompute: `none` where it has nothing to run again."""
        asked = (recompute_of(recompute, number) for number in range(len(self.layers)))
        return tuple(
            own if layer.again(own) is not None else "none" for own, layer in zip(asked, self.layers, strict=True)
        )

    @property
    def tied_gradient_bytes(self) -> int:
        """Of the gradients of the weights that the head shares with the embedding."""
        return gradient_bytes(self.tied_bytes, self.dtype)

    @property
    def crossing(self) -> Dtype | None:
        """The type of what crosses from layer to layer; None where it is not one."""
        numbers = self.micro_batch_size * -(-self.seq_length // self.cp) * self.hidden_size
        kept = {layer.output_bytes for layer in self.layers[:-1]}
        if self.dtype != "fp32" and kept == {numbers * DTYPE_BYTES[self.dtype]}:
            return self.dtype
        return "fp32" if self.dtype == "fp32" or kept == {numbers * DTYPE_BYTES["fp32"]} else None

    @property
    def parameters(self) -> int:
        """Trained parameters of the whole model, a tied weight counted once."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def flops(self) -> int:
        """Forward and backward FLOPs of one microbatch, by all that share it; what they repeat counts once."""
        return self.whole_flops or sum(layer.forward_flops + layer.backward_flops for layer in self.layers)

    @property
    def fingerprint(self) -> str:
        """A hash of the layers and the shape, names aside: equal models cost the same to run."""
        facts = asdict(self)
        del facts["name"], facts["tied_bytes"]  # the bytes follow from the layers and from what is tied
        for layer in facts["layers"]:  # as what they run does
            del layer["forward_work"], layer["input_work"], layer["weight_work"], layer["largest_gradient_bytes"]
        if not any(layer.state_bytes for layer in self.layers):
            for layer in facts["layers"]:
                del layer["state_bytes"]
        if (self.cp, self.ep) == (1, 1):
            del facts["cp"], facts["ep"]
            for layer in facts["layers"]:
                del layer["exchanged"], layer["expert_gradient_bytes"]
        if self.tp == 1:  # what there is nothing of does not change what models were called before
            del facts["tp"], facts["whole_flops"]
            for layer in facts["layers"]:
                del layer["forward_combined"], layer["backward_combined"]
        if self.dtype == "fp32":
            del facts["dtype"]
            for layer in facts["layers"]:
                del layer["master_bytes"], layer["freed_input_bytes"]
                for again in layer["recomputed"]:
                    del again["activations"]["freed_input_bytes"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def gradient_bytes(parameter_bytes: int, dtype: Dtype) -> int:
    """Of the gradients of parameters that are all of one type."""
    return parameter_bytes * GRADIENT_BYTES // DTYPE_BYTES[dtype]
