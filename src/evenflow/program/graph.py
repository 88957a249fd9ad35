"""What waits for what: a program as a graph whose nodes stand in an order in which they can happen.

A node is a span of time: a rank's compute action, a transfer, a reduction, NORM, STEP. It begins once the
three nodes that it names have ended and lasts as long as it costs, so all times of a step follow from one
pass over the nodes:

    end[n] = max(end[after[n]], end[needs[n]], end[also[n]] - lag) + seconds[n]

* A rank takes its actions in order; posting a send or a receive, and starting a reduction, take no time but what taking
  any action costs (`after_actions`, `needs_actions` and `also_actions` count how often that is before a node begins).
* A transfer begins once it was sent, its receive was posted and the wire is free: what was sent before it on
  the same directed edge has left (it may still be under way for the link's latency: `lag`).
* RELEASE holds its rank until its transfer has ended.
* A rank's reductions run one after another beside its compute, in the order in which they were started; NORM waits
  for them. That of tied weights begins once all of its stages have started it and all of its ranks have come to it.
* STEP waits for every rank's NORM.

Building the graph walks all ranks at once, each as far as it can go. If a rank cannot come to its end, the
ranks wait for each other for ever: a deadlock, even if a send completes only once its receive is posted.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evenflow.errors import ProgramError
from evenflow.program.actions import (
    Action,
    Backward,
    Forward,
    InputBackward,
    Norm,
    ReceiveBackward,
    ReceiveForward,
    ReduceGrad,
    ReduceTied,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    Step,
    WeightBackward,
)
from evenflow.program.table import CODES, KINDS, Ints, Table
from evenflow.program.text import action_text


@dataclass(frozen=True, slots=True)
class CostIndex:
    """Where each cost stands in the vector of costs that `Graph.cost` points into; the first is 0 seconds."""

    stages: int
    ranks: int
    tied: int

    def compute(self, code: int) -> int:
        """Of the first stage's F, B, I or W (codes 0 to 3); a cost for each stage."""
        return 1 + code * self.stages

    @property
    def send_forward(self) -> int:
        """A cost for each stage that sends its output."""
        return 1 + 4 * self.stages

    @property
    def send_backward(self) -> int:
        """A cost for each stage that sends its input gradient."""
        return 1 + 5 * self.stages

    @property
    def reduce_grad(self) -> int:
        """A cost for each stage."""
        return 1 + 6 * self.stages

    @property
    def reduce_tied(self) -> int:
        """A cost for each group of stages that share weights."""
        return 1 + 7 * self.stages

    @property
    def norm(self) -> int:
        """A cost for each rank."""
        return self.reduce_tied + self.tied

    @property
    def step(self) -> int:
        """A cost for each rank."""
        return self.norm + self.ranks

    @property
    def begin(self) -> int:
        """When each rank's step before ended."""
        return self.step + self.ranks

    @property
    def combine(self) -> int:
        """One cost: combining all ranks' norms."""
        return self.begin + self.ranks

    @property
    def size(self) -> int:
        """How many costs there are."""
        return self.combine + 1


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in an order in which they can happen, and the program's rows on them.

    Attributes:
        after: the node before it on its rank; for a transfer, the node after which it was sent.
        needs: a second node that it waits for; for a transfer, the node after which it may be received.
        also: a third; for a transfer, the transfer before it on its wire.
        cost: where its seconds stand in the vector of costs.
        after_actions: how many actions its rank (of a transfer: the sender) takes from the end of `after` until it can
            begin, its own included.
        needs_actions: for a transfer, how many the receiver takes from the end of `needs` until the receive is posted.
        also_actions: for an action right after a RELEASE, 1: itself; the transfer waited for is `also`.
        edge: for a transfer, its directed edge (sender x ranks + receiver); -1 for all others.
        row_node: for each row of the table, the node that its action is; -1 where it takes no time of its own.
        row_clock: for each row, the last node of its rank before it.
        row_actions: for each row, how many actions its rank has taken since that node, it included.
        row_transfer: for each RELEASE, the transfer that it waits for; 0 for other rows.
        last: for each rank, its last node.
        index: where each cost stands.
    """

    after: Ints
    needs: Ints
    also: Ints
    cost: Ints
    after_actions: Ints
    needs_actions: Ints
    also_actions: Ints
    edge: Ints
    row_node: Ints
    row_clock: Ints
    row_actions: Ints
    row_transfer: Ints
    last: tuple[int, ...]
    index: CostIndex


def build_graph(
    stage_rank: Sequence[int],
    microbatches: int,
    ranks: tuple[tuple[Action, ...], ...],
    table: Table,
    tied: Sequence[Sequence[int]] = (),
) -> Graph:
    """Walk all ranks.

    Raises:
        ProgramError: they wait for each other for ever.
    """
    walk = _Walk(stage_rank, microbatches, table, tied)
    walk.run()
    stuck = [
        f"rank {rank} at {action_text(ranks[rank][row - int(table.begins[rank])])}"
        for rank, row in enumerate(walk.row)
        if row < table.begins[rank + 1]
    ]
    if stuck:
        raise ProgramError(f"deadlock: {', '.join(stuck)} wait for each other for ever")
    return walk.graph()


class _Walk:
    """The state of the walk; a handler for each kind of action returns whether its rank can go on."""

    def __init__(
        self, stage_rank: Sequence[int], microbatches: int, table: Table, tied: Sequence[Sequence[int]]
    ) -> None:
        ranks, stages = len(table.begins) - 1, len(stage_rank)
        rows, messages = len(table.kind), 2 * stages * microbatches
        self.stage_rank, self.microbatches, self.table = stage_rank, microbatches, table
        self.ranks, self.stages = ranks, stages
        self.index = CostIndex(stages, ranks, len(tied))
        # Node 0 is where time begins, nodes 1 to `ranks` where each rank's step before ended.
        self.after, self.needs, self.also = [0] * (ranks + 1), [0] * (ranks + 1), [0] * (ranks + 1)
        self.cost = [0, *range(self.index.begin, self.index.begin + ranks)]
        self.after_actions, self.needs_actions = [0] * (ranks + 1), [0] * (ranks + 1)
        self.also_actions, self.edge = [0] * (ranks + 1), [-1] * (ranks + 1)
        self.row_node, self.row_clock, self.row_transfer = [-1] * rows, [0] * rows, [0] * rows
        self.row_actions = [0] * rows
        self.row = table.begins[:-1].tolist()  # each rank's next row
        self.clock = list(range(1, ranks + 1))  # each rank's last node
        self.released = [0] * ranks  # the transfer that a rank's last RELEASE waits for, not yet a node's
        self.folded = [0] * ranks  # actions since a rank's last node
        # A message is (direction, stage that it arrives at, microbatch).
        self.sent, self.expected, self.arrived = [-1] * messages, [-1] * messages, [-1] * messages
        self.sent_actions, self.expected_actions = [0] * messages, [0] * messages
        self.waiter = [-1] * messages  # the rank that cannot go on without this message
        self.wire: dict[int, int] = {}  # the last transfer on each directed edge
        self.reducing = [0] * ranks  # each rank's last reduction
        # What each rank has started to reduce and is not yet a node: the group (-1: none), the cost, after which node.
        self.to_reduce: list[deque[tuple[int, int, int]]] = [deque() for _ in range(ranks)]
        self.group = {stage: number for number, group in enumerate(tied) for stage in group}
        # For each group of tied stages, how many each of its ranks has still to start.
        self.missing = [Counter(stage_rank[stage] for stage in group) for group in tied]
        self.norms: list[int] = []
        self.combined = -1
        self.ready: list[int] = []

    def run(self) -> None:
        """Let every rank go as far as it can; whoever it frees goes on."""
        kind, key = self.table.kind.tolist(), (self.table.stage * self.microbatches + self.table.microbatch).tolist()
        ends = self.table.begins[1:].tolist()
        handlers = self._handlers()
        row, row_clock, folded, clock = self.row, self.row_clock, self.folded, self.clock
        row_actions = self.row_actions
        self.ready = list(range(self.ranks))[::-1]
        while self.ready:
            rank = self.ready.pop()
            while (at := row[rank]) < ends[rank]:
                row_clock[at] = clock[rank]
                folded[rank] += 1
                row_actions[at] = folded[rank]
                if not handlers[kind[at]](rank, key[at]):
                    folded[rank] -= 1
                    break
                row[rank] += 1

    def _handlers(self) -> list[Callable[[int, int], bool]]:
        by_kind: dict[type[Action], Callable[[int, int], bool]] = {
            Forward: self._forward,
            Backward: lambda rank, key: self._backward(rank, key, CODES[Backward]),
            InputBackward: lambda rank, key: self._backward(rank, key, CODES[InputBackward]),
            WeightBackward: self._weight,
            SendForward: lambda rank, key: self._send(rank, key, forward=True),
            ReceiveForward: lambda rank, key: self._receive(rank, key, forward=True),
            SendBackward: lambda rank, key: self._send(rank, key, forward=False),
            ReceiveBackward: lambda rank, key: self._receive(rank, key, forward=False),
            ReleaseForward: lambda rank, key: self._release(rank, key + self.microbatches),
            ReleaseBackward: lambda rank, key: self._release(rank, key + (self.stages - 1) * self.microbatches),
            ReduceTied: self._reduce_tied,
            ReduceGrad: self._reduce_grad,
            Norm: self._norm,
            Step: self._step,
        }
        return [by_kind[kind] for kind in KINDS]

    def _node(self, after: int, needs: int, also: int, cost: int, after_actions: int = 0, edge: int = -1) -> int:
        self.after.append(after)
        self.needs.append(needs)
        self.also.append(also)
        self.cost.append(cost)
        self.after_actions.append(after_actions)
        self.needs_actions.append(0)
        self.also_actions.append(0)
        self.edge.append(edge)
        return len(self.after) - 1

    def _own_node(self, rank: int, needs: int, cost: int) -> None:
        """The rank's next action that takes time, together with the RELEASE right before it."""
        node = self._node(self.clock[rank], needs, self.released[rank], cost, self.folded[rank])
        self.row_node[self.row[rank]] = self.clock[rank] = node
        if self.released[rank]:
            self.also_actions[node] = 1
        self.released[rank] = self.folded[rank] = 0

    def _settle(self, rank: int) -> int:
        """The rank's clock as a node, whatever it was released from before."""
        if self.released[rank]:
            self.clock[rank] = self._node(self.clock[rank], 0, self.released[rank], 0, self.folded[rank] - 1)
            self.released[rank], self.folded[rank] = 0, 1
        at = self.row[rank]
        self.row_clock[at], self.row_actions[at] = self.clock[rank], self.folded[rank]
        return self.clock[rank]

    def _wait(self, rank: int, message: int) -> bool:
        self.waiter[message] = rank
        return False

    def _forward(self, rank: int, key: int) -> bool:
        stage, arrival = key // self.microbatches, 0
        if stage and self.stage_rank[stage - 1] != rank:
            arrival = self.arrived[key]
            if arrival < 0:
                return self._wait(rank, key)
        self._own_node(rank, arrival, 1 + stage)
        return True

    def _backward(self, rank: int, key: int, code: int) -> bool:
        stage, arrival = key // self.microbatches, 0
        if stage < self.stages - 1 and self.stage_rank[stage + 1] != rank:
            message = self.stages * self.microbatches + key
            arrival = self.arrived[message]
            if arrival < 0:
                return self._wait(rank, message)
        self._own_node(rank, arrival, 1 + code * self.stages + stage)
        return True

    def _weight(self, rank: int, key: int) -> bool:
        self._own_node(rank, 0, self.index.compute(CODES[WeightBackward]) + key // self.microbatches)
        return True

    def _send(self, rank: int, key: int, forward: bool) -> bool:
        shift = self.microbatches if forward else (self.stages - 1) * self.microbatches
        self.sent[key + shift], self.sent_actions[key + shift] = self._settle(rank), self.folded[rank]
        self._meet(key + shift)
        return True

    def _receive(self, rank: int, key: int, forward: bool) -> bool:
        message = key if forward else self.stages * self.microbatches + key
        self.expected[message], self.expected_actions[message] = self._settle(rank), self.folded[rank]
        self._meet(message)
        return True

    def _meet(self, message: int) -> None:
        """Once a message is both sent and expected it travels; whoever waits for it goes on."""
        sent, expected = self.sent[message], self.expected[message]
        if sent < 0 or expected < 0:
            return
        backward, key = divmod(message, self.stages * self.microbatches)
        stage = key // self.microbatches
        source = stage + 1 if backward else stage - 1
        cost = (self.index.send_backward if backward else self.index.send_forward) + source
        edge = self.stage_rank[source] * self.ranks + self.stage_rank[stage]
        node = self._node(sent, expected, self.wire.get(edge, 0), cost, self.sent_actions[message], edge)
        self.needs_actions[node] = self.expected_actions[message]
        self.arrived[message] = self.wire[edge] = node
        if self.waiter[message] >= 0:
            self.ready.append(self.waiter[message])
            self.waiter[message] = -1

    def _release(self, rank: int, message: int) -> bool:
        arrival = self.arrived[message]
        if arrival < 0:
            return self._wait(rank, message)
        self._settle(rank)
        self.row_transfer[self.row[rank]] = self.released[rank] = arrival
        return True

    def _reduce_grad(self, rank: int, key: int) -> bool:
        stage = (key + 1) // self.microbatches  # the key of an action without microbatch is one less
        self._start_reducing(rank, -1, self.index.reduce_grad + stage)
        return True

    def _reduce_tied(self, rank: int, key: int) -> bool:
        group = self.group[(key + 1) // self.microbatches]
        self.missing[group][rank] -= 1
        if not self.missing[group][rank]:
            self._start_reducing(rank, group, self.index.reduce_tied + group)
        return True

    def _start_reducing(self, rank: int, group: int, cost: int) -> None:
        after = self._settle(rank)
        self.clock[rank] = self._node(after, 0, 0, 0, self.folded[rank])  # others wait for the moment of its start
        self.folded[rank] = 0
        self.to_reduce[rank].append((group, cost, self.clock[rank]))
        self._reduce(rank)

    def _reduce(self, rank: int) -> None:
        """Reductions run in the order in which they were started; one of a group once it is next on all its ranks."""
        while self.to_reduce[rank]:
            group, cost, _ = self.to_reduce[rank][0]
            ranks = list(self.missing[group]) if group >= 0 else [rank]
            if not all(self.to_reduce[other] and self.to_reduce[other][0][0] == group for other in ranks):
                return
            starts = [self.to_reduce[other].popleft()[2] for other in ranks]
            node = self._last_of([*starts, *(self.reducing[other] for other in ranks)], cost)
            for other in ranks:
                self.reducing[other] = node
            for other in ranks:
                self._reduce(other)
        self.ready.append(rank)  # it may wait in NORM

    def _last_of(self, nodes: Sequence[int], cost: int = 0) -> int:
        """A node that ends when the last of `nodes` has ended, and `cost` after it."""
        last = nodes[0]
        for number, node in enumerate(nodes[1:], 2):
            last = self._node(last, node, 0, cost if number == len(nodes) else 0)
        return last if len(nodes) > 1 else self._node(last, 0, 0, cost)

    def _norm(self, rank: int, _key: int) -> bool:
        if self.to_reduce[rank]:
            return False  # woken by the last of them
        self._own_node(rank, self.reducing[rank], self.index.norm + rank)
        self.norms.append(self.clock[rank])
        if len(self.norms) == self.ranks:
            self.combined = self._last_of(self.norms, self.index.combine)
            self.ready += range(self.ranks)
        return True

    def _step(self, rank: int, _key: int) -> bool:
        if self.combined < 0:
            return False  # woken by the last norm
        self._own_node(rank, self.combined, self.index.step + rank)
        return True

    def graph(self) -> Graph:
        """The nodes made."""
        for rank in range(self.ranks):
            if self.released[rank]:  # a program without NORM may end with a RELEASE
                self.clock[rank] = self._node(self.clock[rank], 0, self.released[rank], 0, self.folded[rank])
        return Graph(
            after=np.array(self.after),
            needs=np.array(self.needs),
            also=np.array(self.also),
            cost=np.array(self.cost),
            after_actions=np.array(self.after_actions),
            needs_actions=np.array(self.needs_actions),
            also_actions=np.array(self.also_actions),
            edge=np.array(self.edge),
            row_node=np.array(self.row_node),
            row_clock=np.array(self.row_clock),
            row_actions=np.array(self.row_actions),
            row_transfer=np.array(self.row_transfer),
            last=tuple(self.clock),
            index=self.index,
        )
