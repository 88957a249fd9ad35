"""Costs of a traced model on devices of the catalogue: each operator by its shape, each message by the link it takes.

The roofline and the links are those that presets are planned with. What differs is where operators come from: a preset
gives its dimensions, a traced layer what it really ran, in the type that it trains in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from evenflow.cost.collectives import Fabric
from evenflow.cost.costs import Costs, LayerCost
from evenflow.cost.links import LinkCost
from evenflow.cost.memory import own_gradient_bytes
from evenflow.cost.pinned import fabric_of, link_origin
from evenflow.cost.roofline import Roofline
from evenflow.spec import Attention, Combined, Layer, LayerOperator, Model, Recompute, Work
from evenflow.spec.accelerators import Accelerator

# AdamW reads gradient, weight and two moments and writes three of them: bytes moved for each byte of the gradient.
OPTIMIZER_TRAFFIC = 7
NORM_TRAFFIC = 1


def catalogue_costs(model: Model, device: Accelerator, pp: int, dp: int, roofline: Roofline | None = None) -> Costs:
    """Seconds of each layer by the roofline, of messages by the links between the processes that send them.

    Processes are numbered tp fastest and pp slowest, and nodes are filled one after another, so some of a pipeline's
    edges may leave their node and others not (`cost.links`). Gradients are added in a node first and over nodes then;
    their turn of a ring is such that an even stage's take as long as that.

    Args:
        model: traced in the type that it trains in, for its tp.
        device: every device, with its links.
        pp: pipeline ranks.
        dp: replicas.
        roofline: the figures that data sheets do not give.
    """
    own = _Device(device, roofline or Roofline(), model.dtype == "fp32")
    fabric, tp = fabric_of(device, own.roofline), model.tp
    link, network = fabric.pipeline(pp, dp * tp)
    return Costs(
        layers=tuple(own.layer(layer, tp, fabric) for layer in model.layers),
        stage_forward_s=0.0,
        stage_backward_s=0.0,
        link=link,
        reduce_s=fabric.seconds("all-reduce", 8.0, pp * dp * tp),
        peak_flops=own.peak,
        origin={
            "layers": "analytic",
            "halves": "analytic",
            "link": link_origin(device, pp, dp * tp),
            "optimizer": "analytic",
            "memory": "analytic",
        },
        sum_link=_sum_link(fabric, sum(map(own_gradient_bytes, model.layers)) / pp, dp, tp) if dp > 1 else None,
        network=network,
    )


@dataclass(frozen=True, slots=True)
class _Device:
    """A device as layers see it."""

    device: Accelerator
    roofline: Roofline
    is_single: bool  # fp32: no tensor cores, and twice the bytes

    @property
    def peak(self) -> float:
        """FLOP/s in the type that is trained in."""
        return self.device.single_flops if self.is_single else self.device.half_flops

    @property
    def bandwidth(self) -> float:
        """Bytes a second that kernels reach."""
        return self.device.memory_bytes_per_s * self.roofline.memory

    def seconds(self, operators: Iterable[LayerOperator]) -> float:
        """One after another."""
        return self.roofline.seconds(tuple(operators), self.device, is_single=self.is_single)

    def work(self, work: Work | None, slower: float = 1.0) -> float:
        """A pass: what its kernels take, or what the host takes to start them; attention is `slower` in a backward."""
        assert work is not None, "a traced layer says what it runs"
        attention = self.seconds(own for own in work.operators if isinstance(own, Attention))
        others = self.seconds(own for own in work.operators if not isinstance(own, Attention))
        return max(others + slower * attention, work.kernels * self.roofline.launch_s)

    def layer(self, layer: Layer, tp: int, fabric: Fabric) -> LayerCost:
        """A layer on one of the processes that share it."""
        computing = self.work(layer.forward_work)
        forward = computing + exchanged_s(fabric, tp, layer.forward_combined)
        inputs = self.work(layer.input_work, self.roofline.attention_backward)
        inputs += exchanged_s(fabric, tp, layer.backward_combined)
        weights = self.work(layer.weight_work) if layer.weight_flops else 0.0
        gradients = own_gradient_bytes(layer)

        def again(recompute: Recompute) -> float:
            part = layer.again(recompute)
            if part is None:
                return 0.0
            return computing * part.flops / layer.forward_flops + exchanged_s(fabric, tp, part.combined)

        return LayerCost(
            forward_s=forward,
            backward_s=inputs + weights,
            input_s=inputs,
            weight_s=weights,
            norm_s=NORM_TRAFFIC * gradients / self.bandwidth,
            optimizer_s=(OPTIMIZER_TRAFFIC * gradients + layer.master_bytes // 2) / self.bandwidth,
            recompute_s=again("full"),
            selective_s=again("selective"),
        )


def exchanged_s(fabric: Fabric, tp: int, asked: Iterable[Combined]) -> float:
    """Seconds of what the processes that share out a layer put together, neighbours that they are."""
    return sum(
        fabric.seconds("all-reduce", own.size, tp)
        if own.kind == "add"
        else fabric.seconds("all-gather", own.size * tp, tp)
        for own in asked
    )


def _sum_link(fabric: Fabric, size: float, dp: int, tp: int) -> LinkCost:
    """What a turn of a ring over the replicas takes, where `size` bytes take as long as in and between nodes."""
    link = fabric.network if dp * tp > fabric.node_devices else fabric.node
    part, turns = size / dp, 2 * (dp - 1)
    turn = fabric.seconds("all-reduce", size, dp, tp) / turns
    return replace(link, bytes_per_s=part / max(turn - link.latency_s, part / link.bytes_per_s))
