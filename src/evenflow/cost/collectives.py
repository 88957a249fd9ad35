"""How long tensors take to be combined over a group of processes: over one kind of link, and over nodes of them.

A ring of n processes passes an n-th of the tensor on in each of n - 1 turns, once to add and once to spread the sums; a
tree passes all of it, in twice log2(n) turns (Thakur, Rabenseifner and Gropp 2005, doi:10.1177/1094342005051521,
section 4). Adding itself is taken as free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, assert_never

from evenflow.cost.links import LinkCost, Network, edge_kinds
from evenflow.spec import Combined

Collective = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send"]


def spread_s(link: LinkCost, processes: int, size: float) -> float:
    """Seconds of a reduce-scatter or an all-gather of `size` bytes on a ring."""
    turns = processes - 1
    return turns * link.seconds(size / processes) if turns else 0.0


def all_reduce_s(link: LinkCost, processes: int, size: float) -> float:
    """Seconds of adding `size` bytes on a ring, the sum to be everywhere."""
    return 2 * spread_s(link, processes, size)


def tree_all_reduce_s(link: LinkCost, processes: int, size: float) -> float:
    """Seconds of adding `size` bytes up a tree and down again, large messages in pieces."""
    return 2 * (_turns(processes) * link.latency_s + size / link.bytes_per_s) if processes > 1 else 0.0


def combined_s(link: LinkCost, processes: int, asked: Iterable[Combined]) -> float:
    """Seconds of what the processes that share out a layer put together."""
    return sum(
        all_reduce_s(link, processes, own.size)
        if own.kind == "add"
        else spread_s(link, processes, own.size * processes)
        for own in asked
    )


@dataclass(frozen=True, slots=True)
class Fabric:
    """Links inside a node and between nodes; collectives take ring or tree, whichever is shorter.

    Attributes:
        node: between two devices of a node.
        network: a device's share of what leaves its node.
        node_devices: devices of a node.
    """

    node: LinkCost
    network: LinkCost
    node_devices: int

    def seconds(self, kind: Collective, size: float, ranks: int, stride: int = 1) -> float:
        """One collective of `ranks` ranks, `stride` devices from one to the next.

        Args:
            kind: which.
            size: bytes that each rank ends with (all-gather), starts with (the others) or sends (send).
            ranks: in the group.
            stride: devices between neighbours; those of a node are next to each other. A send that far is taken to stay
                in a node that has more; which edges of a pipeline do is for `pipeline` to say.
        """
        if ranks <= 1 or size <= 0:
            return 0.0
        inside = max(1, min(ranks, self.node_devices // stride))
        outside = math.ceil(ranks / inside)
        if kind == "send":
            return (self.node if stride < self.node_devices else self.network).seconds(size)
        if kind == "all-to-all":
            return self._all_to_all(size, inside, ranks)
        near = _one(kind, size, inside, self.node)
        # What leaves the node was reduced there (or is spread there after): each device carries its share.
        return near + _one(kind, size / inside, outside, self.network)

    def pipeline(self, ranks: int, rank_devices: int) -> tuple[LinkCost, Network | None]:
        """What a transfer takes from a rank to the next, and between nodes where only some of these edges leave one.

        Args:
            ranks: of the pipeline.
            rank_devices: devices of each, next to each other.
        """
        kinds = edge_kinds(ranks, rank_devices, self.node_devices)
        if len(kinds) > 1:
            return self.node, Network(self.network, self.node_devices, rank_devices)
        return self.network if True in kinds else self.node, None

    def routed_s(self, size: float, copies: int, ranks: int, stride: int = 1) -> float:
        """Tokens on their way to experts: each rank's states, sent to `copies` ranks that are chosen alike.

        A state crosses to another node once, whichever and how many of its ranks want it, and is passed on there, and
        to a rank once, however many of its experts want it (DeepSeek-AI 2024, arXiv:2412.19437, section 3.2.2).

        Args:
            size: bytes of one rank's tokens, each once.
            copies: experts that a token visits.
            ranks: that share out the experts.
            stride: devices from one of them to the next.
        """
        if ranks <= 1 or size <= 0:
            return 0.0
        inside = max(1, min(ranks, self.node_devices // stride))
        nodes = math.ceil(ranks / inside)
        near = size * _reached(ranks, copies) * (inside - 1) / inside / self.node.bytes_per_s
        far = size * _reached(nodes, copies) * (nodes - 1) / nodes / self.network.bytes_per_s
        slowest = self.network if nodes > 1 else self.node
        return max(near, far) + math.log2(ranks) * slowest.latency_s

    def _all_to_all(self, size: float, inside: int, ranks: int) -> float:
        near = size * (inside - 1) / ranks / self.node.bytes_per_s
        far = size * (ranks - inside) / ranks / self.network.bytes_per_s
        slowest = self.network if ranks > inside else self.node
        return max(near, far) + math.log2(ranks) * slowest.latency_s


def _one(kind: Literal["all-reduce", "all-gather", "reduce-scatter"], size: float, ranks: int, link: LinkCost) -> float:
    match kind:
        case "all-reduce":
            return min(all_reduce_s(link, ranks, size), tree_all_reduce_s(link, ranks, size))
        case "all-gather" | "reduce-scatter":
            apart = (ranks - 1) / ranks * size / link.bytes_per_s + 2 * _turns(ranks) * link.latency_s
            return min(spread_s(link, ranks, size), apart)
    assert_never(kind)


def _reached(groups: int, copies: int) -> float:
    """How many of `groups` equal groups of experts a token visits, on average, with `copies` picked at random."""
    return float(groups * (1 - (1 - 1 / groups) ** copies))


def _turns(processes: int) -> int:
    return math.ceil(math.log2(processes))
