"""How fast tensors travel between which ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evenflow.cost.costs import LinkCost

Edge = tuple[int, int]  # a sending rank and a receiving one


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
