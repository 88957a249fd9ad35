"""What every layer of a preset costs on one rank of a layout: arrays for a search, from dimensions alone.

Seconds and bytes are those of `cost.pinned`, layer by layer. A layout's shape (shards and microbatch) decides what a
microbatch costs; replicas and ZeRO decide what a step's exchange and update cost and what the state takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from evenflow.cost.costs import Origin
from evenflow.cost.links import LinkCost, Network
from evenflow.cost.pinned import (
    Pinned,
    Redone,
    activation_bytes,
    embedding_seconds,
    exchange_seconds,
    expert_replicas,
    fabric_of,
    one_block,
    pending_bytes,
)
from evenflow.cost.roofline import Roofline
from evenflow.spec import RECOMPUTES
from evenflow.spec.accelerators import Accelerator
from evenflow.spec.architecture import Architecture
from evenflow.spec.operators import Shards, Traffic
from evenflow.spec.trainers import Trainer

Floats = NDArray[np.float64]
HALF = 2  # bytes of a number in half precision
_GRADIENT = 4
_MASTER = 12  # fp32 weight and two moments
_COPIES = 6  # bytes for each logit, where the loss is fused: `cost.pinned.bytes`
_UPDATE_TRAFFIC = 2 * _MASTER + 6  # bytes that updating a parameter moves


@dataclass(frozen=True, slots=True)
class Shape:
    """What the cost of a microbatch hangs on."""

    tp: int = 1
    cp: int = 1
    ep: int = 1
    micro_batch: int = 1


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """One entry a layer, embedding first, head last, for one microbatch on one rank; [3, layers] by way to recompute.

    Attributes:
        forward_s: F.
        input_s: I, [3, layers].
        weight_s: W.
        saved_bytes: kept from forward to backward, its own input included, [3, layers].
        passing_bytes: the most its backward holds beside that, [3, layers].
        pending_bytes: kept from I to W.
        dense: parameters of this rank that all replicas hold.
        experts: parameters of this rank that `ep` shares out.
        hidden_bytes: what crosses from one layer to the next.
        is_block: whether a layer is a block, which can be recomputed.
    """

    forward_s: Floats
    input_s: Floats
    weight_s: Floats
    saved_bytes: Floats
    passing_bytes: Floats
    pending_bytes: Floats
    dense: Floats
    experts: Floats
    hidden_bytes: float
    is_block: NDArray[np.bool_]

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.forward_s)


@dataclass(frozen=True, slots=True)
class StepFigures:
    """One entry a layer: what it costs once a step.

    Attributes:
        reduce_s: adding its gradients over the replicas, as far as that is not done beside its backward.
        optimizer_s: its update, and under ZeRO 1 collecting what other replicas updated.
        state_bytes: weights, gradients and optimizer state; the head has a copy of a tied table.
        tied_state_bytes: of that copy, which a rank that has the embedding too does not need.
    """

    reduce_s: Floats
    optimizer_s: Floats
    state_bytes: Floats
    tied_state_bytes: float = 0.0


class PresetCosts:
    """The figures of one architecture on one device, each shape worked out once."""

    def __init__(
        self,
        architecture: Architecture,
        device: Accelerator,
        seq: int,
        trainer: Trainer,
        roofline: Roofline | None = None,
    ) -> None:
        self.architecture, self.device, self.seq, self.trainer = architecture, device, seq, trainer
        self.roofline = roofline or Roofline()
        self.fabric = fabric_of(device, self.roofline)
        self._figures: dict[Shape, LayerFigures] = {}
        self._steps: dict[tuple[Shape, int, int], StepFigures] = {}

    @property
    def origins(self) -> dict[str, Origin]:
        """Where the seconds of layers, of their backward's halves and of updates come from."""
        return {"layers": "analytic", "halves": "analytic", "optimizer": "analytic"}

    @property
    def layers(self) -> int:
        """Embedding, blocks and head."""
        return self.architecture.layers + 2

    def links(self, ranks: int, rank_devices: int) -> tuple[LinkCost, Network | None]:
        """Transfers along a pipeline of so many ranks, each of so many devices: as `Fabric.pipeline`."""
        return self.fabric.pipeline(ranks, rank_devices)

    def least_hop_s(self, ranks: int, shape: Shape, rank_devices: int) -> float:
        """Seconds that no transfer along that pipeline is shorter than."""
        link, network = self.links(ranks, rank_devices)
        size = self.figures(shape).hidden_bytes
        return min(own.seconds(size) for own in (link, network.link if network is not None else link))

    def figures(self, shape: Shape) -> LayerFigures:
        """What a microbatch costs."""
        if shape not in self._figures:
            self._figures[shape] = self.work_out(shape)
        return self._figures[shape]

    def step_figures(self, shape: Shape, dp: int, zero: int) -> StepFigures:
        """What a step costs beside its microbatches, over `dp` replicas."""
        key = (shape, dp, zero)
        if key not in self._steps:
            self._steps[key] = self._once_a_step(shape, dp, zero)
        return self._steps[key]

    def job(self, shape: Shape, architecture: Architecture | None = None, redone: Redone = "none") -> Pinned:
        """The layout of one layer, for `cost.pinned`."""
        it, trainer = architecture or self.architecture, self.trainer
        return Pinned(
            it, self.device, tp=shape.tp, pp=1, dp=1, cp=shape.cp, ep=shape.ep if it.experts else 1, vpp=1,
            order="1f1b", micro_batch=shape.micro_batch, global_batch=shape.micro_batch, seq=self.seq, redone=redone,
            zero=0, is_eighth=False, is_flash=True,
            is_sequence_parallel=trainer.is_sequence_parallel and shape.tp > 1,
            is_tp_overlapped=trainer.is_tp_overlapped, is_gradient_overlapped=trainer.is_gradient_overlapped,
        )  # fmt: skip

    def ways(self) -> tuple[Redone, ...]:
        """What `none`, `selective` and `full` are to the trainer."""
        return ("none", cast(Redone, self.trainer.selective), "full")

    def tied_parameters(self, shape: Shape) -> float:
        """Of one rank: those that the head shares with the embedding."""
        it = self.architecture
        return it.vocab * it.hidden / shape.tp if it.tied else 0.0

    def owned(self, shape: Shape, shares: tuple[int, int]) -> Floats:
        """Parameters of each layer that a replica updates: of dense ones, and of experts, one in so many."""
        own = self.figures(shape)
        return own.dense / shares[0] + own.experts / shares[1]

    def update_seconds(self, shape: Shape, shares: tuple[int, int]) -> Floats:
        """Seconds in which it updates those."""
        return self.owned(shape, shares) * _UPDATE_TRAFFIC / (self.device.memory_bytes_per_s * self.roofline.memory)

    def work_out(self, shape: Shape) -> LayerFigures:
        """The figures of a shape, which `figures` keeps."""
        it, job = self.architecture, self.job(shape)
        whole = shape.tp if job.is_sequence_parallel else 1
        tokens = shape.micro_batch * self.seq / shape.cp
        hidden = HALF * tokens * it.hidden / whole
        kinds: dict[tuple[bool, bool], tuple[Floats, ...]] = {}
        columns: list[tuple[Floats, ...]] = [self._embedding(shape, hidden)]
        for block in range(it.layers):
            kind = it.is_mixture(block), it.window is not None and block % 2 == 0
            if kind not in kinds:
                kinds[kind] = self._block(shape, block)
            columns.append(kinds[kind])
        columns.append(self._head(shape, hidden))
        forward, inputs, weight, saved, passing, pending, dense, experts = (
            np.stack(column, axis=-1) for column in zip(*columns, strict=True)
        )
        is_block = np.ones(it.layers + 2, dtype=np.bool_)
        is_block[[0, -1]] = False
        return LayerFigures(
            forward, inputs, weight, saved, passing, pending, dense, experts, float(np.ceil(hidden)), is_block
        )

    def _block(self, shape: Shape, block: int) -> tuple[Floats, ...]:
        it = self.architecture
        routed = it.expert_parameters() if it.is_mixture(block) else 0
        own = it if it.is_mixture(block) else replace(it, experts=None)
        seconds, kept, held = [], [], []
        for way in self.ways():
            job = self.job(shape, own, way)
            seconds.append(one_block(job, self.roofline, block))
            bytes_kept, bytes_held = activation_bytes(job)
            kept.append(bytes_kept)
            held.append(bytes_held)
        experts = routed / (shape.ep * (shape.tp if shape.ep == 1 else 1))
        return _column(
            seconds[0].forward_s, [own.input_s for own in seconds], seconds[0].weight_s, kept, held,
            pending_bytes(self.job(shape, own)),
            (it.block_parameters(block) - routed) / shape.tp, experts,
        )  # fmt: skip

    def _embedding(self, shape: Shape, hidden: float) -> tuple[Floats, ...]:
        """Reads and writes rows; with tp, one sum of what each rank looked up."""
        forward, weight = embedding_seconds(self.job(shape), self.roofline)
        parameters = self.architecture.embedding_parameters / shape.tp
        return _column(forward, [0.0] * 3, weight, [0.0] * 3, [0.0] * 3, hidden, parameters, 0.0)

    def _head(self, shape: Shape, hidden: float) -> tuple[Floats, ...]:
        """Norm, product and loss; of a tied table it holds a copy."""
        it, tokens = self.architecture, shape.micro_batch * self.seq / shape.cp
        top = it.head(shape.micro_batch, self.seq, Shards(shape.tp, shape.cp, shape.ep))
        logits = self.roofline.seconds([own for own in top if isinstance(own, Traffic)], self.device)
        product = self.roofline.seconds(top, self.device) - logits
        size = tokens * it.vocab / shape.tp
        parameters = it.head_parameters / shape.tp + self.tied_parameters(shape)
        saved = 2 * hidden + (_COPIES - HALF) * size
        pending = hidden + HALF * size  # what the product took, and the gradient of what it gave
        return _column(
            product + logits, [product] * 3, product, [saved] * 3, [HALF * size] * 3, pending, parameters, 0.0
        )

    def _once_a_step(self, shape: Shape, dp: int, zero: int) -> StepFigures:
        own, fabric = self.figures(shape), self.fabric
        replicas = dp * shape.cp
        shares = (replicas, expert_replicas(replicas, shape.ep)) if zero else (1, 1)
        count = len(own.dense)
        reduce_s, gather_s = np.zeros(count), np.zeros(count)
        seen: dict[tuple[float, float], tuple[float, float]] = {}
        for layer, key in enumerate(zip(own.dense.tolist(), own.experts.tolist(), strict=True)):
            if key not in seen:
                seen[key] = exchange_seconds(fabric, key, replicas, shape.ep, shape.tp)
            reduce_s[layer], gather_s[layer] = seen[key]
        if not zero:
            reduce_s, gather_s = reduce_s + gather_s, np.zeros(count)
        if self.trainer.is_overlapped:
            reduce_s = np.maximum(reduce_s - own.input_s[0] - own.weight_s, 0.0)
            gather_s = np.maximum(gather_s - own.forward_s, 0.0)
        owned, update_s = self.owned(shape, shares), self.update_seconds(shape, shares)
        state = (HALF + _GRADIENT) * (own.dense + own.experts) + _MASTER * owned
        tied = self.tied_parameters(shape) * (HALF + _GRADIENT + _MASTER / shares[0])
        return StepFigures(reduce_s, update_s + gather_s, state, float(np.ceil(tied)))


def _column(
    forward: float, inputs: list[float], weight: float, saved: list[float], passing: list[float], pending: float,
    dense: float, experts: float,
) -> tuple[Floats, ...]:  # fmt: skip
    ways = len(RECOMPUTES)
    assert len(inputs) == len(saved) == len(passing) == ways
    return tuple(np.asarray(own, dtype=np.float64) for own in (
        forward, inputs, weight, np.ceil(saved), np.ceil(passing), np.ceil(pending), dense, experts
    ))  # fmt: skip
