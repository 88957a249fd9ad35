"""What each node of a program's graph costs on given hardware."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from evenflow.cost import Edge, LinkCost, Links, RankCost, StageCost, StageMemory, at_speeds
from evenflow.errors import InputError
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
        overhead_s: what taking any action costs its rank before the action itself, and before it waits for anything.
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
        return at_speeds(self.stages, stage_rank, self.speeds)

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
        lag: for a transfer, how long before its arrival its wire is free again.
        delays: how long after the ends of the three nodes that it names it may begin: what taking actions costs; None
            where that is nothing.
        begin_s: when time begins: when the first rank's step before ended, counted from when the last one's did.
    """

    seconds: Floats
    lag: Floats
    delays: tuple[Floats, Floats, Floats] | None
    begin_s: float


def node_costs(program: Program, hardware: Hardware) -> NodeCosts:
    """The costs of all nodes, on hardware that `check_hardware` lets pass."""
    graph, index = program.graph, program.graph.index
    stages, ranks = hardware.own_stages(program.stage_rank), hardware.own_ranks()
    optimizer = np.array([cost.optimizer_s for cost in ranks])
    updated = _shared_ends(optimizer, index.ranks if hardware.at_once is None else hardware.at_once)
    begin = np.zeros(index.ranks) if program.forward_only else updated - updated.min()
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
    delays: tuple[Floats, Floats, Floats] | None = None
    if hardware.overhead_s:
        price = np.float64(hardware.overhead_s)
        delays = graph.after_actions * price, graph.needs_actions * price, graph.also_actions * price
    return NodeCosts(own, lag, delays, -float(begin.max()))


def _shared_ends(seconds: Floats, processors: int) -> Floats:
    """When ranks that begin together end, each with so many seconds of work, on so few processors.

    A step's end is where the next one begins: with the same moments for both, every rank's step takes equally long.
    """
    ends = np.zeros(len(seconds))
    now = done = 0.0
    for place, rank in enumerate(np.argsort(seconds, kind="stable").tolist()):
        now += (float(seconds[rank]) - done) * max(1.0, (len(seconds) - place) / processors)
        ends[rank], done = now, float(seconds[rank])
    return ends


def check_hardware(stages: int, ranks: int, ties: int, hardware: Hardware) -> None:
    """Refuse what cannot run so many stages on so many ranks, with so many groups of tied stages.

    Raises:
        InputError: what is wrong, in one line.
    """
    for name, given, wanted, of in (
        ("stages", hardware.stages, stages, "stages"),
        ("memory", hardware.memory, stages, "stages"),
        ("ranks", hardware.ranks, ranks, "ranks"),
        ("speeds", hardware.speeds, ranks, "ranks"),
        ("reduce_grad_s", hardware.reduce_grad_s, stages, "stages"),
        ("reduce_tied_s", hardware.reduce_tied_s, ties, "tied groups"),
    ):
        if given is not None and len(given) != wanted:
            raise InputError(f"{name}: there are {len(given)}; the program has {wanted} {of}, so {wanted} would do")
    for rank, speed in enumerate(hardware.speeds or ()):
        if not speed > 0:
            raise InputError(f"speeds: rank {rank} has {speed:g}; more than 0 would do")
    if hardware.at_once is not None and not hardware.at_once >= 1:
        raise InputError(f"at_once: {hardware.at_once} ranks compute at once; 1 would be the least")
    for where, amount, unit in _amounts(hardware):
        if not 0 <= amount < inf:  # nor is it NaN
            raise InputError(f"{where} is {amount:g} {unit}; a finite number, 0 or more, would do")
    _check_links(hardware.links, ranks)


def _amounts(hardware: Hardware) -> Iterator[tuple[str, float, str]]:
    """Whatever becomes seconds of some node: where it stands, the amount and its unit."""
    for stage, cost in enumerate(hardware.stages):
        for name in ("forward_s", "backward_s", "input_s", "weight_s"):
            yield f"stages: stage {stage}: {name}", getattr(cost, name), "seconds"
    for rank, own in enumerate(hardware.ranks):
        for name in ("norm_s", "optimizer_s"):
            yield f"ranks: rank {rank}: {name}", getattr(own, name), "seconds"
    for stage, held in enumerate(hardware.memory):
        for name in ("output_bytes", "input_bytes"):
            yield f"memory: stage {stage}: {name}", getattr(held, name), "bytes"
    for stage, seconds in enumerate(hardware.reduce_grad_s or ()):
        yield f"reduce_grad_s: stage {stage}", seconds, "seconds"
    for group, seconds in enumerate(hardware.reduce_tied_s or ()):
        yield f"reduce_tied_s: group {group}", seconds, "seconds"
    yield "reduce_s", hardware.reduce_s, "seconds"
    yield "overhead_s", hardware.overhead_s, "seconds"


def _check_links(links: LinkCost | Links, ranks: int) -> None:
    if isinstance(links, LinkCost):
        _check_link(links, "links")
        return
    _check_link(links.usual, "links.usual")
    for edge, link in links.between.items():
        _check_edge(edge, ranks, "links.between")
        _check_link(link, f"links.between: rank {edge[0]} to rank {edge[1]}")
    seen: set[Edge] = set()
    for edges in links.shared:
        for edge in sorted(edges):
            _check_edge(edge, ranks, "links.shared")
        for source, target in sorted(edges & seen)[:1]:
            raise InputError(f"links.shared: rank {source} to rank {target} is in two groups; an edge has one wire")
        seen |= edges


def _check_edge(edge: Edge, ranks: int, where: str) -> None:
    source, target = edge
    if not (0 <= source < ranks and 0 <= target < ranks):
        raise InputError(f"{where}: rank {source} to rank {target}: ranks run from 0 to {ranks - 1}")


def _check_link(link: LinkCost, where: str) -> None:
    if not link.bytes_per_s > 0:
        raise InputError(f"{where}: {link.bytes_per_s:g} bytes a second carry nothing; more than 0 would do")
    if not 0 <= link.latency_s < inf:
        raise InputError(f"{where}: latency_s is {link.latency_s:g} seconds; a finite number, 0 or more, would do")


def _edges(edges: NDArray[np.int64], ranks: int, links: LinkCost | Links) -> tuple[Floats, Floats]:
    """Latency and seconds a byte of each transfer's edge."""
    if isinstance(links, LinkCost):
        links = Links(links)
    distinct, which = np.unique(edges, return_inverse=True)
    costs = [links.cost(divmod(edge, ranks)) for edge in distinct.tolist()]
    latency = np.array([cost.latency_s for cost in costs])
    slowness = np.array([1 / cost.bytes_per_s for cost in costs])
    return latency[which], slowness[which]
