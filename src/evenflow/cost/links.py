"""How fast tensors travel between which ranks.

Processes are numbered tp fastest and pp slowest, and fill nodes in that order. So where rank r has s devices, they are
r s to (r + 1) s - 1, and what it hands on to rank q goes from device r s + i to device q s + i, for every i at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

Edge = tuple[int, int]  # a sending rank and a receiving one


@dataclass(frozen=True, slots=True)
class LinkCost:
    """One transfer between neighbouring ranks takes `latency_s + bytes / bytes_per_s`."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, size: float) -> float:
        """Seconds for `size` bytes."""
        return self.latency_s + size / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Network:
    """What joins nodes, where some of a pipeline's edges leave theirs and some do not.

    Attributes:
        link: a transfer from a device of one node to one of another.
        node_devices: devices of a node.
        rank_devices: devices of a pipeline rank: tp x dp x cp.
    """

    link: LinkCost
    node_devices: int
    rank_devices: int


@dataclass(frozen=True, slots=True)
class Links:
    """The links of a pipeline.

    Each directed edge between two ranks is a wire of its own that carries one transfer after another; a transfer
    keeps its wire for bytes / bandwidth and arrives a latency later.

    Attributes:
        usual: the cost of a transfer on every edge that `between` does not name.
        between: edges that cost something else, such as those from one node to another.
        shared: groups of edges that share one wire: who asks first is carried first.
    """

    usual: LinkCost
    between: Mapping[Edge, LinkCost] = field(default_factory=dict)
    shared: tuple[frozenset[Edge], ...] = ()

    def cost(self, edge: Edge) -> LinkCost:
        """The cost of a transfer on one edge."""
        return self.between.get(edge, self.usual)


def leaves_node(edge: Edge, rank_devices: int, node_devices: int) -> bool:
    """Whether any of an edge's transfers goes from node to node: a step waits for the slowest of them.

    One does exactly where a node ends between the first device of the lower rank and the last of the higher one.

    Args:
        edge: two ranks.
        rank_devices: devices of a rank.
        node_devices: devices of a node.
    """
    low, high = min(edge), max(edge)
    return low != high and low * rank_devices // node_devices != ((high + 1) * rank_devices - 1) // node_devices


@lru_cache(maxsize=4096)
def edge_kinds(ranks: int, rank_devices: int, node_devices: int) -> frozenset[bool]:
    """Which kinds of edges there are from a rank to the next: True for those that leave a node; none of one rank."""
    return frozenset(leaves_node((rank, rank + 1), rank_devices, node_devices) for rank in range(ranks - 1))


def rank_links(usual: LinkCost, network: Network | None, stage_rank: Sequence[int]) -> Links:
    """The link of each edge of a pipeline, either way: from stage to stage, and between the ranks of both ends.

    Args:
        usual: of all edges, or with a network of those that stay in a node.
        network: of those that leave it.
        stage_rank: the rank of each stage, in any order: in loops the last rank sends to the first, which is far away.
    """
    if network is None:
        return Links(usual)
    edges = {*pairwise(stage_rank), (stage_rank[0], stage_rank[-1])}
    far = [edge for edge in edges if leaves_node(edge, network.rank_devices, network.node_devices)]
    return Links(usual, {own: network.link for edge in sorted(far) for own in (edge, edge[::-1])})
