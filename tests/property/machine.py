"""A machine that runs a program with tokens for tensors: a second opinion that knows none of verify's rules.

Each directed edge between two ranks is one queue without tags: the n-th send meets the n-th receive, whatever
they carry. A send is complete once its receive is posted. A neighbour stage on the same rank finds the tensor
where it was made. Reductions change gradients in place, one after another on each rank, in the order in which
they were started, and one of tied weights only once it is the next on all of its ranks. NORM waits for its
rank's reductions and combines over all ranks, so none leaves it before all have come. A rank that uses a tensor
it does not hold, or not the right one, or that ends with wrong gradients, is refused.
"""

from __future__ import annotations

from collections import deque
from typing import assert_never

from evenflow.program import (
    Action,
    Backward,
    Forward,
    InputBackward,
    Norm,
    Program,
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

Tensor = tuple[str, int, int]  # what it is, the stage that made it, its microbatch
Edge = tuple[int, int]
Gradient = set[tuple[int, int] | str]  # the (stage, microbatch)es that were added, and whether all replicas' were

REPLICAS = "replicas"


class Refused(Exception):
    """The program did what no machine can do."""


class _Rank:
    def __init__(self) -> None:
        self.next = 0
        self.holds: dict[Tensor, Tensor] = {}  # by the name under which it is known here: what it really is
        self.sends: dict[Tensor, tuple[Edge, int]] = {}  # under way: edge and place in its queue
        self.receives: dict[Tensor, tuple[Edge, int]] = {}
        self.gradients: dict[int, Gradient] = {}  # of each stage
        self.reduced: set[tuple[str, int]] = set()  # started
        self.reductions: deque[tuple[int, ...] | int] = deque()  # under way: a group of stages, or one stage
        self.normed = self.stepped = False
        self.history: list[tuple[Tensor, ...]] = []


class _Machine:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.ranks = [_Rank() for _ in program.ranks]
        self.sent: dict[Edge, list[Tensor]] = {}
        self.asked: dict[Edge, list[Tensor]] = {}
        for stage, rank in enumerate(program.stage_rank):
            self.ranks[rank].gradients[stage] = set()

    def run(self) -> None:
        moved = True
        while moved:
            moved = False
            for number, rank in enumerate(self.ranks):
                actions = self.program.ranks[number]
                while rank.next < len(actions) and self.take(number, actions[rank.next]):
                    rank.next += 1
                    rank.history.append((*rank.holds, *rank.receives))
                    moved = True
        if any(rank.next < len(own) for rank, own in zip(self.ranks, self.program.ranks, strict=True)):
            raise Refused("deadlock")
        if any(len(self.sent.get(edge, [])) != len(self.asked.get(edge, [])) for edge in {*self.sent, *self.asked}):
            raise Refused("a transfer without its other end")
        for number, rank in enumerate(self.ranks):
            if rank.holds or rank.sends or rank.receives:
                raise Refused(f"rank {number} is left with {rank.holds} {rank.sends} {rank.receives}")
            self.check_result(number, rank)

    def check_result(self, number: int, rank: _Rank) -> None:
        program = self.program
        everything = range(program.microbatches)
        for stage, gradient in rank.gradients.items():
            if program.forward_only:
                expected = {(stage, k) for k in everything}
            else:
                tied = next((group for group in program.tied_apart if stage in group), (stage,))
                expected = {(other, k) for other in tied for k in everything}
                expected |= {REPLICAS} if program.reduces else set()
            if gradient != expected:
                raise Refused(f"rank {number} has {gradient} of stage {stage}")
        if rank.stepped == program.forward_only:
            raise Refused(f"rank {number} has not stepped, or should not")

    def take(self, number: int, action: Action) -> bool:
        """Do one action; False where it has to wait."""
        rank, where, last = self.ranks[number], self.program.stage_rank, self.program.stages - 1
        if not isinstance(action, Norm | Step) and where[action.stage] != number:
            raise Refused("a stage that is not here")
        if rank.normed and not isinstance(action, Step):
            raise Refused("work between the norm and the update")
        if rank.stepped:
            raise Refused("work after the update")
        match action:
            case Forward(stage, k):
                if stage > 0 and not self.is_here(number, ("output", stage - 1, k), where[stage - 1]):
                    return False
                if stage < last:
                    _make(rank, ("output", stage, k))
                if self.program.forward_only:
                    self.finish(rank, stage, k)
                else:
                    _make(rank, ("saved", stage, k))
            case Backward(stage, k) | InputBackward(stage, k):
                if stage < last and not self.is_here(number, ("gradient", stage + 1, k), where[stage + 1]):
                    return False
                _drop(rank, ("saved", stage, k))
                if stage > 0:
                    _make(rank, ("gradient", stage, k))
                if isinstance(action, Backward):
                    self.finish(rank, stage, k)
                else:
                    _make(rank, ("pending", stage, k))
            case WeightBackward(stage, k):
                _drop(rank, ("pending", stage, k))
                self.finish(rank, stage, k)
            case SendForward(stage, k):
                self.send(rank, ("output", stage, k), (number, where[stage + 1]))
            case SendBackward(stage, k):
                self.send(rank, ("gradient", stage, k), (number, where[stage - 1]))
            case ReceiveForward(stage, k):
                self.ask(rank, ("output", stage - 1, k), (where[stage - 1], number))
            case ReceiveBackward(stage, k):
                self.ask(rank, ("gradient", stage + 1, k), (where[stage + 1], number))
            case ReleaseForward(stage, k):
                return self.release(rank, ("output", stage, k))
            case ReleaseBackward(stage, k):
                return self.release(rank, ("gradient", stage, k))
            case ReduceTied(stage) | ReduceGrad(stage):
                self.start_reducing(rank, stage, isinstance(action, ReduceTied))
            case Norm():
                if not all(map(self.is_at_norm, range(len(self.ranks)))):
                    return False
                rank.normed = True
            case Step():
                if not rank.normed:
                    raise Refused("an update without a norm")
                rank.stepped = True
            case _:
                assert_never(action)
        return True

    def finish(self, rank: _Rank, stage: int, k: int) -> None:
        """A stage is done with a microbatch: what it read goes, its gradient is added (or its forward counted)."""
        if stage > 0:
            _drop(rank, ("output", stage - 1, k))
        if stage < self.program.stages - 1 and not self.program.forward_only:
            _drop(rank, ("gradient", stage + 1, k))
        if any(reduced == stage for _, reduced in rank.reduced):
            raise Refused("a gradient added to one that is being reduced")
        if (stage, k) in rank.gradients[stage]:
            raise Refused("a gradient added twice")
        rank.gradients[stage].add((stage, k))

    def is_here(self, number: int, tensor: Tensor, maker: int) -> bool:
        """Whether a tensor is here; from another rank it must have been asked for and be what is needed."""
        rank = self.ranks[number]
        if maker == number:
            if tensor not in rank.holds:
                raise Refused(f"{tensor} was not made")
            return True
        if tensor not in rank.receives:
            raise Refused(f"{tensor} was not asked for")
        edge, place = rank.receives[tensor]
        queue = self.sent.get(edge, [])
        if place >= len(queue):
            return False
        if queue[place] != tensor:
            raise Refused(f"{queue[place]} came where {tensor} was asked for")
        del rank.receives[tensor]
        rank.holds[tensor] = tensor
        return True

    def send(self, rank: _Rank, tensor: Tensor, edge: Edge) -> None:
        if edge[0] == edge[1] or tensor not in rank.holds or tensor in rank.sends:
            raise Refused(f"{tensor} cannot be sent")
        queue = self.sent.setdefault(edge, [])
        rank.sends[tensor] = (edge, len(queue))
        queue.append(rank.holds[tensor])

    def ask(self, rank: _Rank, tensor: Tensor, edge: Edge) -> None:
        if edge[0] == edge[1] or tensor in rank.receives or tensor in rank.holds:
            raise Refused(f"{tensor} asked for twice")
        queue = self.asked.setdefault(edge, [])
        rank.receives[tensor] = (edge, len(queue))
        queue.append(tensor)

    def release(self, rank: _Rank, tensor: Tensor) -> bool:
        if tensor not in rank.sends:
            raise Refused(f"{tensor} was not sent")
        edge, place = rank.sends[tensor]
        if place >= len(self.asked.get(edge, [])):
            return False
        del rank.sends[tensor]
        _drop(rank, tensor)
        return True

    def start_reducing(self, rank: _Rank, stage: int, is_tied: bool) -> None:
        if (what := ("tied" if is_tied else "replicas", stage)) in rank.reduced:
            raise Refused("reduced twice")
        rank.reduced.add(what)
        group = next((group for group in self.program.tied if stage in group), None)
        if not is_tied:
            here = [own for own in group or () if own in rank.gradients]
            if any((own, k) not in rank.gradients[own] for own in here for k in range(self.program.microbatches)):
                raise Refused("weights that a rank's stages share, reduced before they are complete")
            rank.reductions.append(stage)
        elif group is None:
            raise Refused("weights that are tied to nothing")
        elif all(("tied", own) in rank.reduced for own in group if own in rank.gradients):
            rank.reductions.append(group)
        while any(self.reduce(own) for own in self.ranks):
            pass

    def reduce(self, rank: _Rank) -> bool:
        """Do what a rank is to reduce next, if all who take part have come to it."""
        if not rank.reductions:
            return False
        head = rank.reductions[0]
        stages = head if isinstance(head, tuple) else (head,)
        ranks = [own for own in self.ranks if any(stage in own.gradients for stage in stages)]
        if any(not own.reductions or own.reductions[0] != head for own in ranks):
            return False
        gradients = [own.gradients[stage] for own in ranks for stage in stages if stage in own.gradients]
        if any(REPLICAS in gradient for gradient in gradients):
            raise Refused("a sum over replicas reduced once more")
        total: Gradient = set().union(*gradients) if isinstance(head, tuple) else gradients[0] | {REPLICAS}
        for gradient in gradients:
            gradient |= total
        for own in ranks:
            own.reductions.popleft()
        return True

    def is_at_norm(self, number: int) -> bool:
        rank, actions = self.ranks[number], self.program.ranks[number]
        stands = rank.next < len(actions) and isinstance(actions[rank.next], Norm)
        return rank.normed or (stands and not rank.reductions)


def _make(rank: _Rank, tensor: Tensor) -> None:
    if tensor in rank.holds:
        raise Refused(f"{tensor} made twice")
    rank.holds[tensor] = tensor


def _drop(rank: _Rank, tensor: Tensor) -> None:
    if rank.holds.pop(tensor, None) != tensor:
        raise Refused(f"{tensor} is not here")


def run(program: Program) -> list[list[tuple[Tensor, ...]]]:
    """Run all ranks for as long as any can go on, then look at what they are left with.

    Returns:
        For each rank, the tensors for which it has room after each of its actions.
    """
    machine = _Machine(program)
    machine.run()
    return [rank.history for rank in machine.ranks]
