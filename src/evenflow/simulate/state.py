"""The state of a simulated step: when each action can start, and what follows from its having happened."""

from __future__ import annotations

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
)
from evenflow.timeline import Event


class StepState:
    """What has happened so far.

    Attributes:
        begin: for each rank, when its step before ended.
        clock: for each rank, when its last action ended.
        position: for each rank, how many actions it has taken.
        events: for each rank, their spans.
    """

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

    def next_action(self, rank: int) -> Action | None:
        """The action that `rank` takes next; None at its end."""
        actions = self.program.ranks[rank]
        return actions[self.position[rank]] if self.position[rank] < len(actions) else None

    def seconds(self, action: Action, rank: int) -> float:
        """How long `rank` computes for `action`, on a processor of its own."""
        match action:
            case Forward(stage, _):
                return self.stages[stage].forward_s
            case Backward(stage, _):
                return self.stages[stage].backward_s
            case Norm():
                return self.rank_costs[rank].norm_s
            case Step():
                return self.rank_costs[rank].optimizer_s
            case _:
                return 0.0

    def ready_at(self, action: Action, rank: int) -> float | None:
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

    def take(self, action: Action, rank: int, start: float, end: float) -> list[int]:
        """Let `rank` have done `action`; returns the ranks that it may have freed from waiting."""
        woken: list[int] = []
        match action:
            case Forward() | Backward() | Step():
                pass
            case SendForward(stage, microbatch):
                woken = self._meet(action, ReceiveForward(stage + 1, microbatch), action, start)
            case ReceiveForward(stage, microbatch):
                woken = self._meet(SendForward(stage - 1, microbatch), action, action, start)
            case SendBackward(stage, microbatch):
                woken = self._meet(action, ReceiveBackward(stage - 1, microbatch), action, start)
            case ReceiveBackward(stage, microbatch):
                woken = self._meet(SendBackward(stage + 1, microbatch), action, action, start)
            case ReleaseForward(stage, microbatch):
                end = max(start, self.arrived[ReceiveForward(stage + 1, microbatch)])
            case ReleaseBackward(stage, microbatch):
                end = max(start, self.arrived[ReceiveBackward(stage - 1, microbatch)])
            case Norm():
                self.norms.append(end)
                if len(self.norms) == len(self.program.ranks):
                    woken = list(range(len(self.program.ranks)))
            case _:
                assert_never(action)
        self.events[rank].append(Event(action, start, end))
        self.clock[rank] = end
        self.position[rank] += 1
        return woken

    def _meet(
        self,
        send: SendForward | SendBackward,
        receive: ReceiveForward | ReceiveBackward,
        happened: Action,
        now: float,
    ) -> list[int]:
        """Start the transfer once both its ends are there; returns whoever waits for it."""
        self.known[happened] = now
        if send not in self.known or receive not in self.known:
            return []
        stage_rank = self.program.stage_rank
        edge = (stage_rank[send.stage], stage_rank[receive.stage])
        boundary = min(send.stage, receive.stage)
        begin = max(self.known[send], self.known[receive], self.edge_free.get(edge, now))
        self.edge_free[edge] = self.arrived[receive] = begin + self.transfer_s[boundary]
        waiter = self.waiting.pop(receive, None)
        return [] if waiter is None else [waiter]

    def check_finished(self) -> None:
        """Raise if a rank has not come to its end."""
        stuck = [
            f"rank {rank} at {action_text(actions[self.position[rank]])}"
            for rank, actions in enumerate(self.program.ranks)
            if self.position[rank] < len(actions)
        ]
        if stuck:
            raise ProgramError(f"deadlock: {', '.join(stuck)} wait for each other for ever")
