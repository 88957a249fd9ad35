"""Bytes of training: what a stage keeps for good, for each microbatch in flight, and in passing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from evenflow.spec import Layer

MESSAGE_BYTES = 32 << 20  # of gradients that replicas add; enough that a message's own cost is nothing beside it
_MOMENTS = 2  # of AdamW, each as large as the gradient


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes of one stage.

    Attributes:
        parameter_bytes: its parameters.
        state_bytes: parameters, gradients and optimizer state (master weights in it) together; gradients are held from
            the step's first backward to its update, the others all the time. In the first stage of a rank also what its
            process holds beside tensors.
        saved_bytes: kept from a microbatch's forward to its backward, the stage's input not included.
        pending_bytes: kept from the input half of a backward to its weight half, beside the stage's input and the
            gradient of its output.
        input_bytes: one microbatch's input: hidden states from the stage before (0 on the first).
        output_bytes: one microbatch's output to the stage after (0 on the last).
        forward_peak_bytes: the most a forward holds above what it starts from.
        backward_peak_bytes: the most a backward holds above what it starts from.
        input_peak_bytes: the most the input half of a backward holds above what it starts from.
        weight_bytes: the part of its gradients that the weight half of a backward makes.
        first_backward_peak_bytes: as `backward_peak_bytes`, of a step's first, which makes the parameters' gradients.
        first_input_peak_bytes: as `input_peak_bytes`, of a step's first, which makes those that W does not.
        master_bytes: fp32 copies that the optimizer keeps, of those parameters that are in less; a replica's share of
            them is in `state_bytes`.
        message_bytes: the largest message that its gradients are added up in, over replicas or over copies of a tied
            weight; it is laid out while the gradients that move into it are still there.
    """

    parameter_bytes: int
    state_bytes: int
    saved_bytes: int
    pending_bytes: int
    input_bytes: int
    output_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int
    input_peak_bytes: int = 0
    weight_bytes: int = 0
    first_backward_peak_bytes: int = 0
    first_input_peak_bytes: int = 0
    master_bytes: int = 0
    message_bytes: int = 0

    @property
    def gradient_bytes(self) -> int:
        """Its gradients, which are fp32 whatever its parameters are."""
        return own_gradient_bytes(self)


def state_with_experts(layer: Layer, copies: int, ep: int) -> int:
    """State of a layer under ZeRO 1 over `copies` replicas, of which `ep` together hold each expert once."""
    experts = layer.expert_gradient_bytes
    gradients = own_gradient_bytes(layer)
    optimizer = _MOMENTS * gradients + layer.master_bytes
    of_experts = optimizer * experts // gradients if gradients else 0
    shared = -(-(optimizer - of_experts) // copies) - (-of_experts // max(copies // ep, 1))
    return layer.parameter_bytes + gradients + shared


class _Parameters(Protocol):
    @property
    def parameter_bytes(self) -> int:
        """In their own type."""

    @property
    def master_bytes(self) -> int:
        """In fp32, of those that have another type, which has half as many bytes."""


def own_gradient_bytes(own: _Parameters) -> int:
    """The gradients of a layer's or stage's parameters: half of a master's bytes are those of its parameter."""
    return own.parameter_bytes + own.master_bytes // 2


class LayerBytes(Protocol):
    """What memory needs to know of a layer; `spec.Layer` says what each is."""

    @property
    def parameter_bytes(self) -> int:
        """Its parameters."""

    @property
    def saved_bytes(self) -> int:
        """Kept from forward to backward, its input included where that is kept."""

    @property
    def pending_bytes(self) -> int:
        """Kept from I to W."""

    @property
    def output_bytes(self) -> int:
        """What crosses to the next layer."""

    @property
    def forward_peak_bytes(self) -> int:
        """The most that forward holds at once."""

    @property
    def backward_peak_bytes(self) -> int:
        """The most that backward holds at once."""

    @property
    def shared_bytes(self) -> int:
        """The part of what is saved that all layers of a stage share."""

    @property
    def input_peak_bytes(self) -> int:
        """The most that the input half of a backward holds at once."""

    @property
    def kept_gradient_bytes(self) -> int:
        """The part of what is kept from I to W that is the gradient of its output."""

    @property
    def weight_bytes(self) -> int:
        """The part of its gradients that W makes."""

    @property
    def freed_input_bytes(self) -> int:
        """Its input, where it does not keep that."""

    @property
    def master_bytes(self) -> int:
        """Copies in fp32 of those parameters that are in less."""

    @property
    def largest_gradient_bytes(self) -> int:
        """Of the parameter that has most; 0 where nobody said."""

    @property
    def state_bytes(self) -> int:
        """Parameters, gradients and optimizer state on one replica; 0 where that follows from the parameters."""

    @property
    def first_backward_peak_bytes(self) -> int:
        """The most that a step's first backward holds at once, the gradients that it makes included."""

    @property
    def first_input_peak_bytes(self) -> int:
        """The same of the first input half."""


class HasLayers(Protocol):
    """A model, or a plan of one."""

    @property
    def layers(self) -> Sequence[LayerBytes]:
        """The layers, in order."""

    @property
    def tied_bytes(self) -> int:
        """Of the weights that the last layer shares with the first, and are counted with that."""

    @property
    def tied_gradient_bytes(self) -> int:
        """Of their gradients."""


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """The bytes of any run of layers of one model.

    Attributes:
        model: the layers.
        shares: how many replicas share out the optimizer's state (ZeRO 1); 1 where each has all of it.
        process_bytes: what a rank's process holds beside tensors, as measured.
        replicas: over how many gradients are added.
    """

    model: HasLayers
    shares: int = 1
    process_bytes: int = 0
    replicas: int = 1

    def stage(self, layers: Sequence[int], has_both: bool = False) -> StageMemory:
        """The memory of a stage that holds `layers` (contiguous, in order; may be empty).

        A head without the embedding has a copy of the weights that they share, unless `has_both` says that one rank
        holds both.
        """
        held = [self.model.layers[layer] for layer in layers]
        if not held:
            return StageMemory(0, 0, 0, 0, 0, 0, 0, 0)
        parameter_bytes = sum(layer.parameter_bytes for layer in held)
        master_bytes = sum(layer.master_bytes for layer in held)
        input_bytes = self.model.layers[layers[0] - 1].output_bytes if layers[0] else 0
        is_last = layers[-1] == len(self.model.layers) - 1
        state_bytes = sum(layer.state_bytes for layer in held)
        parted = bool(is_last) != (layers[0] == 0) and not has_both  # from what it may share weights with
        if is_last and parted:
            copied = self.model.tied_bytes
            copied_master = 2 * (self.model.tied_gradient_bytes - copied)
            state_bytes += self._state_bytes(copied, copied_master) if state_bytes else 0
            parameter_bytes, master_bytes = parameter_bytes + copied, master_bytes + copied_master
        kept_input_bytes = max(input_bytes - held[0].freed_input_bytes, 0)
        saved, forward_peak = _forward(held, kept_input_bytes)
        return StageMemory(
            parameter_bytes=parameter_bytes,
            state_bytes=state_bytes or self._state_bytes(parameter_bytes, master_bytes),
            saved_bytes=max(saved - kept_input_bytes, 0),
            pending_bytes=sum(layer.pending_bytes for layer in held) - held[-1].kept_gradient_bytes,
            input_bytes=input_bytes,
            output_bytes=0 if is_last else held[-1].output_bytes,
            forward_peak_bytes=forward_peak,
            weight_bytes=sum(layer.weight_bytes for layer in held),
            master_bytes=master_bytes,
            message_bytes=self._message_bytes(held, self.model.tied_gradient_bytes if parted else 0, layers[0] == 0),
            **_backward_peaks(held),
        )

    def _message_bytes(self, held: Sequence[LayerBytes], tied: int, is_first: bool) -> int:
        """The largest message, of a tied weight's gradient or to other replicas; under ZeRO 1 with earlier shares.

        A tied weight is in no other message. Of presets, whose trainers mostly add gradients in place, it is left out.
        """
        if any(layer.state_bytes for layer in held):
            return 0
        if self.replicas == 1:
            return tied
        whole = sum(map(own_gradient_bytes, held)) - (tied if is_first else 0)
        largest = max((own.largest_gradient_bytes for own in (held[1:] if tied and is_first else held)), default=0)
        message = min(whole, max(MESSAGE_BYTES, largest))
        before = -(-(whole - message) // self.shares) if self.shares > 1 else 0  # the shares of the messages before it
        return max(tied, message + before)

    def _state_bytes(self, parameter_bytes: int, master_bytes: int) -> int:
        """Parameters, gradients and optimizer state, of those that replicas share out this one's part."""
        gradient_bytes = parameter_bytes + master_bytes // 2
        optimizer_bytes = -(-(_MOMENTS * gradient_bytes + master_bytes) // self.shares)
        return parameter_bytes + gradient_bytes + optimizer_bytes

    def stages(
        self, stages: Sequence[Sequence[int]], stage_rank: Sequence[int] | None = None
    ) -> tuple[StageMemory, ...]:
        """The memory of each stage; `stage_rank[s]` is the rank that holds stage `s`, by default one of its own."""
        ranks = range(len(stages)) if stage_rank is None else stage_rank
        has_both = ranks[0] == ranks[-1]
        return tuple(
            self.on_rank(self.stage(layers, has_both), is_first=rank not in ranks[:number])
            for number, (layers, rank) in enumerate(zip(stages, ranks, strict=True))
        )

    def on_rank(self, stage: StageMemory, is_first: bool = True) -> StageMemory:
        """A stage with what its rank's process holds beside tensors, which the first of a rank's stages has."""
        return replace(stage, state_bytes=stage.state_bytes + self.process_bytes) if is_first else stage


def _forward(held: Sequence[LayerBytes], input_bytes: int) -> tuple[int, int]:
    """What a stage's forward leaves, and the most that it holds; each layer's input is the output of the one before."""
    kept = peak = own_input = 0
    for layer in held:
        already = min(kept, input_bytes)  # the stage's input was there before its forward
        peak = max(peak, kept - already + own_input + layer.forward_peak_bytes)
        kept += layer.saved_bytes - layer.shared_bytes
        own_input = layer.output_bytes
    return kept + max(layer.shared_bytes for layer in held), peak


def _backward_peaks(held: Sequence[LayerBytes]) -> dict[str, int]:
    """The most that a stage's backward holds, and its input half; both free what layers saved as they go.

    What the input half leaves pending of a layer, and the gradients that a step's first backward makes of its
    parameters, stay while the layers before it are at work.
    """
    peaks = {
        "backward_peak_bytes": 0,
        "input_peak_bytes": 0,
        "first_backward_peak_bytes": 0,
        "first_input_peak_bytes": 0,
    }
    left = dict.fromkeys(peaks, 0)  # beside what the stage's backward began with
    for place, layer in enumerate(reversed(held)):
        own_gradient = layer.output_bytes if place else 0  # that of the stage's output was there before
        for name in peaks:
            peaks[name] = max(peaks[name], left[name] + own_gradient + getattr(layer, name))
        freed = layer.saved_bytes - layer.shared_bytes
        pending = layer.pending_bytes - (0 if place else layer.kept_gradient_bytes)
        left["backward_peak_bytes"] -= freed
        left["input_peak_bytes"] += pending - freed
        left["first_backward_peak_bytes"] += own_gradient_bytes(layer) - freed
        left["first_input_peak_bytes"] += own_gradient_bytes(layer) - layer.weight_bytes + pending - freed
    return peaks
