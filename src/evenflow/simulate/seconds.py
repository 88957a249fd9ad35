"""What each node of a program's graph costs on given hardware."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evenflow.cost import LinkCost, Links, RankCost, StageCost, StageMemory
from evenflow.program import Program

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a program runs on.

    Attributes:
        stages: seconds of each stage.
        ranks: seconds of each rank's norm and update.
        links: cost of transfers between ranks.
        memory: bytes of each stage; the boundaries' sizes are taken from it.
        reduce_s: combining the norms of all ranks.
        reduce_grad_s: for each stage, adding its gradients over the replicas; by default none.
        reduce_tied_s: for each group of tied stages, adding their gradients; by default none.
        overhead_s: what taking an action costs its rank beside the action itself.
        speeds: for each rank, how fast it computes; a rank of speed 2 takes half of its stages' seconds. By default 1.
        at_once: how many ranks can compute at once; by default all.
    """

    stages: Sequence[StageCost]
    ranks: Sequence[RankCost]
    links: LinkCost | Links
    memory: Sequence[StageMemory]
    reduce_s: float = 0.0
    reduce_grad_s: Sequence[float] | None = None
    reduce_tied_s: Sequence[float] | None = None
    overhead_s: float = 0.0
    speeds: Sequence[float] | None = None
    at_once: int | None = None

    def own_stages(self, stage_rank: Sequence[int]) -> tuple[StageCost, ...]:
        """Seconds of each stage on its own rank."""
        if self.speeds is None:
            return tuple(self.stages)
        speeds = [self.speeds[rank] for rank in stage_rank]
        return tuple(
            StageCost(own.forward_s / by, own.backward_s / by, own.input_s / by, own.weight_s / by)
            for own, by in zip(self.stages, speeds, strict=True)
        )

    def own_ranks(self) -> tuple[RankCost, ...]:
        """Seconds of each rank's norm and update at its own speed."""
        if self.speeds is None:
            return tuple(self.ranks)
        return tuple(
            RankCost(own.norm_s / by, own.optimizer_s / by) for own, by in zip(self.ranks, self.speeds, strict=True)
        )


@dataclass(frozen=True, slots=True)
class NodeCosts:
    """For each node of a graph.

    Attributes:
        seconds: how long it lasts.
        own: the part of that which its action computes; the rest is overhead.
        lag: for a transfer, how long before its arrival its wire is free again.
        begin_s: when time begins: when the first rank's step before ended, counted from when the last one's did.
    """

    seconds: Floats
    own: Floats
    lag: Floats
    begin_s: float


def node_costs(program: Program, hardware: Hardware) -> NodeCosts:
    """The costs of all nodes."""
    graph, index = program.graph, program.graph.index
    stages, ranks = hardware.own_stages(program.stage_rank), hardware.own_ranks()
    optimizer = np.array([cost.optimizer_s for cost in ranks])
    begin = np.zeros(index.ranks) if program.forward_only else optimizer - optimizer.min()
    compute = (
        [cost.forward_s for cost in stages],
        [cost.backward_s for cost in stages],
        [cost.input_s for cost in stages],
        [cost.weight_s for cost in stages],
    )
    costs = np.concatenate(
        [
            [0.0],
            *compute,
            [own.output_bytes for own in hardware.memory],
            [own.input_bytes for own in hardware.memory],
            hardware.reduce_grad_s or [0.0] * index.stages,
            hardware.reduce_tied_s or [0.0] * index.tied,
            [cost.norm_s for cost in ranks],
            optimizer,
            begin,
            [hardware.reduce_s],
        ]
    )
    own = costs[graph.cost]
    lag = np.zeros(len(own))
    transfers = np.flatnonzero(graph.edge >= 0)
    if transfers.size:
        latency, slowness = _edges(graph.edge[transfers], index.ranks, hardware.links)
        own[transfers] = latency + own[transfers] * slowness
        lag[transfers] = latency
    seconds = own + hardware.overhead_s * graph.actions if hardware.overhead_s else own
    return NodeCosts(seconds, own, lag, -float(begin.max()))


def _edges(edges: NDArray[np.int64], ranks: int, links: LinkCost | Links) -> tuple[Floats, Floats]:
    """Latency and seconds a byte of each transfer's edge."""
    if isinstance(links, LinkCost):
        links = Links(links)
    distinct, which = np.unique(edges, return_inverse=True)
    costs = [links.cost(divmod(edge, ranks)) for edge in distinct.tolist()]
    latency = np.array([cost.latency_s for cost in costs])
    slowness = np.array([1 / cost.bytes_per_s for cost in costs])
    return latency[which], slowness[which]
