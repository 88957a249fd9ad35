"""Costs of a traced model on devices of the catalogue: each operator by its shape, each message by the link it takes.

The roofline and the links are those that presets are planned with. What differs is where operators come from: a preset
gives its dimensions, a traced layer what it really ran, in the type that it trains in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from evenflow.cost.collectives import Collective, Fabric
from evenflow.cost.costs import Costs, LayerCost
from evenflow.cost.links import LinkCost
from evenflow.cost.memory import own_gradient_bytes
from evenflow.cost.pinned import expert_replicas, fabric_of, link_origin
from evenflow.cost.roofline import Roofline
from evenflow.spec import Attention, Combined, Layer, LayerOperator, Model, Recompute, Work
from evenflow.spec.accelerators import Accelerator

# AdamW reads gradient, weight and two moments and writes three of them: bytes moved for each byte of the gradient.
OPTIMIZER_TRAFFIC = 7
NORM_TRAFFIC = 1


def catalogue_costs(
    model: Model, device: Accelerator, pp: int, dp: int, roofline: Roofline | None = None, zero: int = 0
) -> Costs:
    """Seconds of each layer by the roofline, of messages by the links between the processes that send them.

    Processes are numbered tp fastest and pp slowest, and nodes are filled one after another, so some of a pipeline's
    edges may leave their node and others not (`cost.links`). Gradients are added in a node first and over nodes then;
    their turn of a ring is such that an even stage's take as long as that. Where processes share experts, the gradients
    of these are added over fewer of them than all others: then each layer says for itself what adding them takes, and
    what its update does.

    Args:
        model: traced in the type that it trains in, for its tp, cp and ep.
        device: every device, with its links.
        pp: pipeline ranks.
        dp: replicas.
        roofline: the figures that data sheets do not give.
        zero: what replicas share out.
    """
    own = _Device(device, roofline or Roofline(), model.dtype == "fp32")
    fabric, tp, copies = fabric_of(device, own.roofline), model.tp, dp * model.cp
    link, network = fabric.pipeline(pp, copies * tp)
    layers = tuple(own.layer(layer, model, fabric) for layer in model.layers)
    if model.ep > 1:
        layers = tuple(
            _spread(cost, layer, _Copies(fabric, copies, model.ep, tp, zero))
            for cost, layer in zip(layers, model.layers, strict=True)
        )
    return Costs(
        layers=layers,
        stage_forward_s=0.0,
        stage_backward_s=0.0,
        link=link,
        reduce_s=fabric.seconds("all-reduce", 8.0, pp * copies * tp),
        peak_flops=own.peak,
        origin={
            "layers": "analytic",
            "halves": "analytic",
            "link": link_origin(device, pp, copies * tp),
            "optimizer": "analytic",
            "memory": "analytic",
        },
        replicas=copies if model.ep > 1 else 1,
        shares=copies if model.ep > 1 and zero else 1,
        sum_link=_sum_link(fabric, sum(map(own_gradient_bytes, model.layers)) / pp, copies, tp) if copies > 1 else None,
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

    def layer(self, layer: Layer, model: Model, fabric: Fabric) -> LayerCost:
        """A layer on one of the processes that share it."""
        tp, computing = model.tp, self.work(layer.forward_work)
        keys, routed = self.keys_s(layer, model, fabric), _routed_s(layer, model, fabric)
        forward = computing + exchanged_s(fabric, tp, layer.forward_combined) + keys + routed
        inputs = self.work(layer.input_work, self.roofline.attention_backward)
        inputs += exchanged_s(fabric, tp, layer.backward_combined) + keys + routed
        weights = self.work(layer.weight_work) if layer.weight_flops else 0.0
        gradients = own_gradient_bytes(layer)

        def again(recompute: Recompute) -> float:
            part = layer.again(recompute)
            if part is None:
                return 0.0
            own = computing * part.flops / layer.forward_flops + exchanged_s(fabric, tp, part.combined)
            return own + (keys + routed if recompute == "full" else 0.0)  # as of presets: keys are kept with attention

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

    def keys_s(self, layer: Layer, model: Model, fabric: Fabric) -> float:
        """Keys and values of whole sequences, gathered over cp beside attention, as far as that is shorter.

        As of a preset (`cost.pinned.seconds`), in F and in I alike.
        """
        if model.cp == 1 or layer.exchanged is None or layer.forward_work is None:
            return 0.0
        attention = self.seconds(own for own in layer.forward_work.operators if isinstance(own, Attention))
        return max(0.0, fabric.seconds("all-gather", layer.exchanged.keys_bytes, model.cp, model.tp) - attention)


def _routed_s(layer: Layer, model: Model, fabric: Fabric) -> float:
    """Tokens on their way to experts and back, in F and in I alike.

    Processes that share a layer by tp hold the same tokens and each a part of every expert, so each sends all of them.
    """
    if layer.exchanged is None:
        return 0.0
    return 2 * fabric.routed_s(layer.exchanged.routed_bytes, layer.exchanged.routed_copies, model.ep, model.tp)


@dataclass(frozen=True, slots=True)
class _Copies:
    """Over whom gradients are added: `copies` of what is no expert, of an expert `ep` times fewer."""

    fabric: Fabric
    copies: int
    ep: int
    tp: int
    zero: int

    def seconds(self, kind: Collective, dense: float, experts: float) -> float:
        """One exchange."""
        apart = expert_replicas(self.copies, self.ep)
        return self.fabric.seconds(kind, dense, self.copies, self.tp) + self.fabric.seconds(
            kind, experts, apart, self.tp * self.ep
        )


def _spread(cost: LayerCost, layer: Layer, among: _Copies) -> LayerCost:
    """A layer's cost with what adding its gradients takes, and under ZeRO 1 with its share of the update."""
    whole = own_gradient_bytes(layer)
    part = layer.expert_gradient_bytes / whole if whole else 0.0  # of gradients, as of what is updated
    dense, experts = whole * (1 - part), whole * part
    if not among.zero:
        return replace(cost, reduce_s=among.seconds("all-reduce", dense, experts))
    apart = expert_replicas(among.copies, among.ep)
    gathered = among.seconds("all-gather", layer.parameter_bytes * (1 - part), layer.parameter_bytes * part)
    return replace(
        cost,
        reduce_s=among.seconds("reduce-scatter", dense, experts),
        optimizer_s=cost.optimizer_s * ((1 - part) / among.copies + part / apart) + gathered,
    )


def exchanged_s(fabric: Fabric, tp: int, asked: Iterable[Combined]) -> float:
    """Seconds of what the processes that share out a layer put together, neighbours that they are."""
    return sum(
        fabric.seconds("all-reduce", own.size, tp)
        if own.kind == "add"
        else fabric.seconds("all-gather", own.size * tp, tp)
        for own in asked
    )


def _sum_link(fabric: Fabric, size: float, copies: int, tp: int) -> LinkCost:
    """What a turn of a ring over the replicas takes, where `size` bytes take as long as in and between nodes."""
    link = fabric.network if copies * tp > fabric.node_devices else fabric.node
    part, turns = size / copies, 2 * (copies - 1)
    turn = fabric.seconds("all-reduce", size, copies, tp) / turns
    return replace(link, bytes_per_s=part / max(turn - link.latency_s, part / link.bytes_per_s))
