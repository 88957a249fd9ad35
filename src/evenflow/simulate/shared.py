"""What several share: more ranks than processors, and wires that carry the transfers of several edges.

With c processors and k > c ranks computing, each goes on at c / k of its own speed (processor sharing). A shared
wire carries whoever asked first. Both depend on what happens at the same time elsewhere, so time is walked from
event to event: somebody finishes computing, or something becomes ready.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np

from evenflow.cost import Edge
from evenflow.program import Graph
from evenflow.simulate.seconds import Floats, NodeCosts

_SAME = 1e-12  # moments closer than this, relative to their size, count as one: floats cannot tell them apart


def play_shared(
    graph: Graph, costs: NodeCosts, processors: int, shared: tuple[frozenset[Edge], ...]
) -> tuple[Floats, Floats]:
    """When each node starts and ends, at most `processors` ranks computing at full speed."""
    play = _Play(graph, costs, processors, shared)
    play.run()
    return np.array(play.start), np.array(play.end)


class _Play:
    def __init__(self, graph: Graph, costs: NodeCosts, processors: int, shared: tuple[frozenset[Edge], ...]) -> None:
        nodes = len(graph.cost)
        self.processors = processors
        self.needs = list(zip(graph.after.tolist(), graph.needs.tolist(), graph.also.tolist(), strict=True))
        self.seconds, self.lag = costs.seconds.tolist(), costs.lag.tolist()
        nothing = np.zeros(nodes)
        self.delays = list(zip(*(own.tolist() for own in costs.delays or (nothing,) * 3), strict=True))
        self.computes = _computing(graph)
        self.wire = _shared_wires(graph, shared)
        self.wire_free = [costs.begin_s] * len(shared)
        self.start, self.end = [costs.begin_s] * nodes, [costs.begin_s] * nodes
        self.missing = [len(set(needs) - {0}) for needs in self.needs]
        self.waiting: list[list[int]] = [[] for _ in range(nodes)]
        for node, needs in enumerate(self.needs):
            for other in set(needs) - {0}:
                self.waiting[other].append(node)
        self.ready: list[tuple[float, int]] = []  # nodes that compute or share a wire, and when they can begin
        self.left: dict[int, float] = {}  # of those that compute: their seconds still to go at full speed

    def run(self) -> None:
        """Walk from event to event."""
        for node in [node for node in range(1, len(self.needs)) if not self.missing[node]]:  # before any is freed
            self._begin(node)
        now = min((moment for moment, _ in self.ready), default=0.0)
        while self.ready or self.left:
            while self.ready and _reached(self.ready[0][0], now):
                self._let_in(heappop(self.ready)[1], now)
            if not self.left and not self.ready:
                break
            speed = min(1.0, self.processors / len(self.left)) if self.left else 1.0
            ends = {node: now + left / speed for node, left in self.left.items()}
            then = min([*ends.values(), *(moment for moment, _ in self.ready[:1])])
            for node in ends:
                self.left[node] -= (then - now) * speed
            now = then
            for node in [node for node, end in ends.items() if _reached(end, then)]:
                del self.left[node]
                self._finish(node, now)

    def _begin(self, node: int) -> None:
        """All that a node needs has ended, or is known to end; so may be what needs this one, and so on."""
        todo = [node]
        while todo:
            node = todo.pop()
            after, needs, also = self.needs[node]
            own, other, third = self.delays[node]
            ready = max(self.end[after] + own, self.end[needs] + other, self.end[also] - self.lag[node] + third)
            if self.computes[node] or self.wire[node] >= 0:
                heappush(self.ready, (ready, node))
            else:
                self.start[node] = ready
                todo += self._freed(node, ready + self.seconds[node])

    def _let_in(self, node: int, now: float) -> None:
        if self.wire[node] >= 0:
            now = max(now, self.wire_free[self.wire[node]])
            self.wire_free[self.wire[node]] = now + self.seconds[node] - self.lag[node]
            self.start[node] = now
            self._finish(node, now + self.seconds[node])
        elif self.seconds[node] > 0:
            self.start[node] = now
            self.left[node] = self.seconds[node]
        else:
            self.start[node] = now
            self._finish(node, now)

    def _finish(self, node: int, moment: float) -> None:
        for other in self._freed(node, moment):
            self._begin(other)

    def _freed(self, node: int, moment: float) -> list[int]:
        """The nodes that waited for this one alone, now that it ends."""
        self.end[node] = moment
        for other in self.waiting[node]:
            self.missing[other] -= 1
        return [other for other in self.waiting[node] if not self.missing[other]]


def _computing(graph: Graph) -> list[bool]:
    computes = np.zeros(len(graph.cost), dtype=bool)
    computes[graph.row_node[graph.row_node >= 0]] = True
    return [bool(own) for own in computes]


def _shared_wires(graph: Graph, shared: tuple[frozenset[Edge], ...]) -> list[int]:
    """For each node the shared wire that it travels on; -1 for all others."""
    ranks = graph.index.ranks
    number = {source * ranks + target: wire for wire, edges in enumerate(shared) for source, target in edges}
    return [number.get(edge, -1) if edge >= 0 else -1 for edge in graph.edge.tolist()]


def _reached(moment: float, now: float) -> bool:
    return moment <= now + _SAME * max(1.0, abs(now))
