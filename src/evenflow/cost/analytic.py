"""Costs where nothing was measured: from the catalogue, or of this machine from FLOPs and what is assumed of it."""

from __future__ import annotations

from evenflow.cost.catalogue import NORM_TRAFFIC, OPTIMIZER_TRAFFIC, catalogue_costs
from evenflow.cost.collectives import combined_s
from evenflow.cost.costs import Costs, LayerCost
from evenflow.cost.links import LinkCost
from evenflow.cost.memory import own_gradient_bytes
from evenflow.spec import Again, Cluster, Layer, Model

_BYTES_PER_FLOP = 0.01  # memory bandwidth of current accelerators and CPUs, within a factor of two


def analytic_costs(model: Model, cluster: Cluster, dp: int = 1, zero: int = 0) -> Costs:
    """Seconds of devices of the catalogue by their roofline and links, of this machine's by FLOPs alone.

    Here they are FLOPs / (peak x assumed efficiency), the optimizer's bytes / assumed bandwidth, and what a layer's
    processes put together takes as long as on a ring of the device's links: what is here can be measured instead.

    Args:
        model: described for the axes' tp, and of devices of the catalogue for their cp and ep.
        cluster: its devices are those of the first group.
        dp: replicas.
        zero: what they share out.
    """
    device = cluster.device
    if cluster.groups:
        pp = cluster.devices // (model.tp * model.cp * dp)
        return catalogue_costs(model, cluster.groups[0].accelerator, pp, dp, zero=zero)
    bandwidth = device.flops * _BYTES_PER_FLOP
    link = LinkCost(device.link_latency_s, device.link_bytes_per_s)
    return Costs(
        layers=tuple(
            _layer_cost(layer, model.tp, device.flops * device.efficiency, bandwidth, link) for layer in model.layers
        ),
        stage_forward_s=0.0,
        stage_backward_s=0.0,
        link=link,
        reduce_s=2 * device.link_latency_s * max(cluster.devices - 1, 0),
        peak_flops=device.flops,
        origin={
            "layers": "analytic",
            "halves": "analytic",
            "link": "assumed",
            "optimizer": "assumed",
            "memory": "analytic",
        },
    )


def _layer_cost(layer: Layer, tp: int, rate: float, bandwidth: float, link: LinkCost) -> LayerCost:
    forward_s = layer.forward_flops / rate + combined_s(link, tp, layer.forward_combined)
    weight_s, combining_s = layer.weight_flops / rate, combined_s(link, tp, layer.backward_combined)
    backward_s = layer.backward_flops / rate + combining_s
    return LayerCost(
        forward_s=forward_s,
        backward_s=backward_s,
        input_s=(layer.backward_flops - layer.weight_flops) / rate + combining_s,
        weight_s=weight_s,
        norm_s=NORM_TRAFFIC * own_gradient_bytes(layer) / bandwidth,
        optimizer_s=(OPTIMIZER_TRAFFIC * own_gradient_bytes(layer) + layer.master_bytes // 2) / bandwidth,
        recompute_s=_again_s(layer.again("full"), tp, rate, link),
        selective_s=_again_s(layer.again("selective"), tp, rate, link),
    )


def _again_s(again: Again | None, tp: int, rate: float, link: LinkCost) -> float:
    return 0.0 if again is None else again.flops / rate + combined_s(link, tp, again.combined)
