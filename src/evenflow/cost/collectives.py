"""Seconds of collectives by latency and bandwidth: ring or tree, whichever is shorter, in a node and over the network.

The counts of bytes and of steps are those of Thakur, Rabenseifner and Gropp 2005, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, assert_never

Collective = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send"]


@dataclass(frozen=True, slots=True)
class Wire:
    """A link as collectives see it.

    Attributes:
        latency_s: of one message.
        bytes_per_s: one direction, as reached rather than as printed.
    """

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Fabric:
    """Links inside a node and between nodes.

    Attributes:
        node: between two devices of a node.
        network: a device's share of what leaves its node.
        node_devices: devices of a node.
    """

    node: Wire
    network: Wire
    node_devices: int

    def seconds(self, kind: Collective, size: float, ranks: int, stride: int = 1) -> float:
        """One collective of `ranks` ranks, `stride` devices from one to the next.

        Args:
            kind: which.
            size: bytes that each rank ends with (all-gather), starts with (the others) or sends (send).
            ranks: in the group.
            stride: devices between neighbours; those of a node are next to each other.
        """
        if ranks <= 1 or size <= 0:
            return 0.0
        inside = max(1, min(ranks, self.node_devices // stride))
        outside = math.ceil(ranks / inside)
        if kind == "send":
            return _one(kind, size, 2, self.node if stride < self.node_devices else self.network)
        if kind == "all-to-all":
            return self._all_to_all(size, inside, ranks)
        near = _one(kind, size, inside, self.node)
        # What leaves the node was reduced there (or is spread there after): each device carries its share.
        return near + _one(kind, size / inside, outside, self.network)

    def _all_to_all(self, size: float, inside: int, ranks: int) -> float:
        near = size * (inside - 1) / ranks / self.node.bytes_per_s
        far = size * (ranks - inside) / ranks / self.network.bytes_per_s
        slowest = self.network if ranks > inside else self.node
        return max(near, far) + math.log2(ranks) * slowest.latency_s


def _one(kind: Collective, size: float, ranks: int, wire: Wire) -> float:
    if ranks <= 1:
        return 0.0
    part = size / wire.bytes_per_s
    share, depth = (ranks - 1) / ranks, math.ceil(math.log2(ranks))
    match kind:
        case "all-reduce":
            ring = 2 * share * part + 2 * (ranks - 1) * wire.latency_s
            return min(ring, 2 * part + 2 * depth * wire.latency_s)
        case "all-gather" | "reduce-scatter":
            return share * part + min(ranks - 1, 2 * depth) * wire.latency_s
        case "all-to-all":
            return share * part + depth * wire.latency_s
        case "send":
            return part + wire.latency_s
    assert_never(kind)
