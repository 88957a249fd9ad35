"""The simulator: reads a program and what its actions cost, returns the timeline it would have.

Ranks take their actions in order, each as soon as it can:

* F and B start once their input has arrived and last as long as their stage costs.
* A transfer starts once it was sent, its receive was posted and the edge is free (one transfer at a time
  on each directed edge), and takes latency + bytes / bandwidth.
* RELEASE waits for its transfer to end; posting a send or a receive takes no time.
* STEP waits for every rank's NORM and for combining them.

A step follows a step: ranks begin where their STEP before left them, so ranks with less to update begin
earlier, just as they do in a run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import assert_never

from evenflow.cost import LinkCost, RankCost, StageCost, StageMemory
from evenflow.errors import ProgramError
from evenflow.program import (
    Action,
    Backward,
    Forward,
    Norm,
    Program,
    ReceiveBackward,
    ReceiveForward,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    Step,
    action_text,
    rank_memory,
)
from evenflow.timeline import Event, RankTimeline, Timeline


def simulate(
    program: Program,
    stages: Sequence[StageCost],
    ranks: Sequence[RankCost],
    link: LinkCost,
    memory: Sequence[StageMemory],
    reduce_s: float = 0.0,
) -> Timeline:
    """Predict one step of `program`.

    Args:
        program: what the ranks do.
        stages: seconds of each stage.
        ranks: seconds of each rank's norm and update.
        link: cost of a transfer between ranks.
        memory: bytes of each stage; the boundary's size is taken from it.
        reduce_s: combining the norms of all ranks.

    Raises:
        ProgramError: the ranks wait for each other for ever.
    """
    run = _Run(program, stages, ranks, link, memory, reduce_s)
    run.play()
    return Timeline(
        "predicted",
        program,
        tuple(_with_memory(program, memory, rank, run) for rank in range(len(program.ranks))),
    )


def free_transfers() -> LinkCost:
    """A link that costs nothing: what a schedule is worth on its own (`schedule_bound`)."""
    return LinkCost(0.0, float("inf"))


class _Run:
    """The state of one simulated step."""

    def __init__(
        self,
        program: Program,
        stages: Sequence[StageCost],
        ranks: Sequence[RankCost],
        link: LinkCost,
        memory: Sequence[StageMemory],
        reduce_s: float,
    ) -> None:
        self.program = program
        self.stages = stages
        self.rank_costs = ranks
        self.reduce_s = reduce_s
        self.transfer_s = [link.seconds(own.output_bytes) for own in memory]
        slowest_update = max(cost.optimizer_s for cost in ranks)
        self.begin = [cost.optimizer_s - slowest_update for cost in ranks]
        self.clock = list(self.begin)
        self.position = [0] * len(program.ranks)
        self.events: list[list[Event]] = [[] for _ in program.ranks]
        self.known: dict[Action, float] = {}  # when a send started or a receive was posted
        self.arrived: dict[Action, float] = {}  # when a transfer ended, by its receive
        self.edge_free: dict[tuple[int, int], float] = {}
        self.norms: list[float] = []
        self.waiting: dict[Action, int] = {}  # the rank that is held up by this receive's transfer

    def play(self) -> None:
        """Advance all ranks to their ends."""
        ready = deque(range(len(self.program.ranks)))
        while ready:
            rank = ready.popleft()
            actions = self.program.ranks[rank]
            while self.position[rank] < len(actions):
                start = self._ready_at(actions[self.position[rank]], rank)
                if start is None:
                    break
                self._take(actions[self.position[rank]], rank, start, ready)
                self.position[rank] += 1
        self._check_finished()

    def _ready_at(self, action: Action, rank: int) -> float | None:
        """When `rank` can start `action`; None while that is not known yet."""
        transfer: Action | None
        match action:
            case Forward(stage, microbatch):
                transfer = ReceiveForward(stage, microbatch) if stage else None
            case Backward(stage, microbatch):
                transfer = ReceiveBackward(stage, microbatch) if stage < self.program.stages - 1 else None
            case Step():
                if len(self.norms) < len(self.program.ranks):
                    return None
                return max(self.norms) + self.reduce_s
            case ReleaseForward(stage, microbatch):
                return self._if_known(ReceiveForward(stage + 1, microbatch), rank, self.clock[rank])
            case ReleaseBackward(stage, microbatch):
                return self._if_known(ReceiveBackward(stage - 1, microbatch), rank, self.clock[rank])
            case SendForward() | SendBackward() | ReceiveForward() | ReceiveBackward() | Norm():
                transfer = None
            case _:
                assert_never(action)
        if transfer is None:
            return self.clock[rank]
        arrival = self._if_known(transfer, rank, self.arrived.get(transfer, 0.0))
        return None if arrival is None else max(self.clock[rank], arrival)

    def _if_known(self, transfer: Action, rank: int, value: float) -> float | None:
        if transfer in self.arrived:
            return value
        self.waiting[transfer] = rank
        return None

    def _take(self, action: Action, rank: int, start: float, ready: deque[int]) -> None:
        end = start
        match action:
            case Forward(stage, _):
                end = start + self.stages[stage].forward_s
            case Backward(stage, _):
                end = start + self.stages[stage].backward_s
            case SendForward(stage, microbatch):
                self._meet(action, ReceiveForward(stage + 1, microbatch), action, start, ready)
            case ReceiveForward(stage, microbatch):
                self._meet(SendForward(stage - 1, microbatch), action, action, start, ready)
            case SendBackward(stage, microbatch):
                self._meet(action, ReceiveBackward(stage - 1, microbatch), action, start, ready)
            case ReceiveBackward(stage, microbatch):
                self._meet(SendBackward(stage + 1, microbatch), action, action, start, ready)
            case ReleaseForward(stage, microbatch):
                end = max(start, self.arrived[ReceiveForward(stage + 1, microbatch)])
            case ReleaseBackward(stage, microbatch):
                end = max(start, self.arrived[ReceiveBackward(stage - 1, microbatch)])
            case Norm():
                end = start + self.rank_costs[rank].norm_s
                self.norms.append(end)
                if len(self.norms) == len(self.program.ranks):
                    ready.extend(range(len(self.program.ranks)))
            case Step():
                end = start + self.rank_costs[rank].optimizer_s
            case _:
                assert_never(action)
        self.events[rank].append(Event(action, start, end))
        self.clock[rank] = end

    def _meet(
        self,
        send: SendForward | SendBackward,
        receive: ReceiveForward | ReceiveBackward,
        happened: Action,
        now: float,
        ready: deque[int],
    ) -> None:
        """Start the transfer once both its ends are there; wake whoever waits for it."""
        self.known[happened] = now
        if send not in self.known or receive not in self.known:
            return
        stage_rank = self.program.stage_rank
        edge = (stage_rank[send.stage], stage_rank[receive.stage])
        boundary = min(send.stage, receive.stage)
        begin = max(self.known[send], self.known[receive], self.edge_free.get(edge, now))
        self.edge_free[edge] = self.arrived[receive] = begin + self.transfer_s[boundary]
        waiter = self.waiting.pop(receive, None)
        if waiter is not None:
            ready.append(waiter)

    def _check_finished(self) -> None:
        stuck = [
            f"rank {rank} at {action_text(actions[self.position[rank]])}"
            for rank, actions in enumerate(self.program.ranks)
            if self.position[rank] < len(actions)
        ]
        if stuck:
            raise ProgramError(f"deadlock: {', '.join(stuck)} wait for each other for ever")


def _with_memory(program: Program, memory: Sequence[StageMemory], rank: int, run: _Run) -> RankTimeline:
    held = rank_memory(program, memory, rank)
    return RankTimeline(
        begin_s=run.begin[rank],
        end_s=run.clock[rank],
        events=tuple(run.events[rank]),
        peak_bytes=max(own.peak_bytes for own in held),
        memory=tuple(own.after_bytes for own in held),
    )
