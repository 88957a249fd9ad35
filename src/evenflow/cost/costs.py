"""What each layer costs on one device: the figures that a plan is made from, measured or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from evenflow.cost.links import LinkCost, Links, Network, rank_links
from evenflow.spec import Recompute, Recomputes, recompute_of

Origin = Literal["measured", "analytic", "assumed"]


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Seconds of one layer on one device.

    Attributes:
        forward_s: one forward of one microbatch.
        backward_s: one whole backward of one microbatch, gradients accumulated.
        input_s: the half of a backward that makes the input's gradient.
        weight_s: the half that makes and accumulates the gradients of linear layers' weights.
        norm_s: the norms of its gradients, once a step.
        optimizer_s: clipping and updating its parameters, once a step.
        recompute_s: what running its forward again adds to a backward, and to its input half; 0 for a layer that is
            never recomputed.
        selective_s: as `recompute_s`, of its attention's forward alone.
        reduce_s: adding its gradients over the replicas, once a step; None where that follows from the pipeline's link.
            Where it is given, collecting what other replicas updated is in `optimizer_s`.
    """

    forward_s: float
    backward_s: float
    input_s: float
    weight_s: float
    norm_s: float
    optimizer_s: float
    recompute_s: float = 0.0
    selective_s: float = 0.0
    reduce_s: float | None = None

    def again_s(self, recompute: Recompute) -> float:
        """What a way to recompute adds."""
        return {"none": 0.0, "selective": self.selective_s, "full": self.recompute_s}[recompute]

    def under(self, recompute: Recompute) -> LayerCost:
        """This cost where a part of the forward is run again in the backward.

        The weights' half needs nothing again: what it is made from was queued by the input's half.
        """
        again_s = self.again_s(recompute)
        return replace(self, backward_s=self.backward_s + again_s, input_s=self.input_s + again_s)


# What a profile measures of a layer: all but what replicas exchange.
TIMED_PARTS = tuple(name for name in LayerCost.__slots__ if name != "reduce_s")


@dataclass(frozen=True, slots=True)
class Costs:
    """What a plan is made from.

    Attributes:
        layers: one entry for each of the model's layers, in order.
        stage_forward_s: what a stage's forward costs beside its layers (masks, positions, calls).
        stage_backward_s: what a stage's backward (or its input half) costs beside its layers.
        link: transfers between neighbouring stages; with a network, of those on one node.
        reduce_s: combining the gradient norm over all ranks, once a step.
        peak_flops: floating-point operations a second of one device at its best.
        origin: for each group of figures (`layers`, `halves`, `link`, `optimizer`, `memory`), where it comes from.
        replicas: over how many gradients are added.
        shares: how many of them share out the update: all under ZeRO 1, else 1.
        speeds: how fast each rank computes, where they differ: a rank of speed 2 takes half of these seconds.
        process_bytes: what a rank's process holds beside tensors; 0 where nobody measured it.
        sum_link: what a turn of a ring takes that adds gradients up; None where that is a transfer's.
        network: transfers between stages on different nodes; None where all edges are alike.
    """

    layers: tuple[LayerCost, ...]
    stage_forward_s: float
    stage_backward_s: float
    link: LinkCost
    reduce_s: float
    peak_flops: float
    origin: dict[str, Origin]
    replicas: int = 1
    shares: int = 1
    speeds: tuple[float, ...] | None = None
    process_bytes: int = 0
    sum_link: LinkCost | None = None
    network: Network | None = None

    @property
    def reduces_by_layer(self) -> bool:
        """Whether layers say what adding their gradients takes."""
        return any(own.reduce_s is not None for own in self.layers)

    @property
    def adding(self) -> LinkCost:
        """What a turn of a ring takes that adds gradients up."""
        return self.sum_link or self.link

    def links(self, stage_rank: Sequence[int]) -> Links:
        """What each edge takes, where stages are on these ranks."""
        return rank_links(self.link, self.network, stage_rank)

    def over(self, replicas: int, shares: int) -> Costs:
        """These costs for several replicas, of which `shares` share out every update."""
        layers = tuple(replace(own, optimizer_s=own.optimizer_s / shares) for own in self.layers)
        return replace(self, layers=layers, replicas=replicas, shares=shares)

    def under(self, recompute: Recomputes) -> Costs:
        """These costs with layers' forwards, or parts of them, run again in their backwards."""
        layers = (own.under(recompute_of(recompute, number)) for number, own in enumerate(self.layers))
        return replace(self, layers=tuple(layers))
