"""Legality as code: what every program must satisfy before anything simulates or runs it.

1. Each stage computes each microbatch's forward exactly once, and its backward exactly once, whole (B) or in
   halves (I, then W), on its own rank.
2. Tensors live as they should: nothing is used before it is made or after it is freed, and nothing is left over.
3. Sends and receives pair up, in the same order at both ends of every directed edge (transports without
   tags need that).
4. Gradients are reduced after the last of them was computed, once; every rank ends with one NORM and one STEP.
5. Taken together the ranks finish even if a send completes only once its receive is posted.
6. Where bytes are given, all that was taken is freed; where caps are, no rank ever holds more.

Almost every rule says that one action comes after another on the same rank, so almost every rule is a comparison
of rows. Of all that is wrong the first action is named, with its rank and the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import overload

import numpy as np
from numpy.typing import NDArray

from evenflow.cost import StageMemory
from evenflow.errors import ProgramError
from evenflow.program.actions import (
    Action,
    Backward,
    Forward,
    InputBackward,
    MicrobatchAction,
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
from evenflow.program.memory import rank_memory
from evenflow.program.placement import check_stages
from evenflow.program.program import Program
from evenflow.program.table import Ints
from evenflow.program.text import action_text
from evenflow.units import format_bytes

Mask = NDArray[np.bool_]


@overload
def verify(program: Program) -> None: ...
@overload
def verify(program: Program, memory: Sequence[StageMemory], caps: Sequence[float] | None = None) -> None: ...
def verify(program: Program, memory: Sequence[StageMemory] | None = None, caps: Sequence[float] | None = None) -> None:
    """Check all rules.

    Args:
        program: what is checked.
        memory: bytes of each stage: no rank frees more than it holds, and at the end it holds its state alone.
        caps: bytes that each rank may hold; only with `memory`.

    Raises:
        ProgramError: a rule is broken; the text names the rank, the action and the reason.
    """
    _check_shape(program)
    _check_places(program)
    rules = _Rules(program)
    rules.check_once()
    rules.check_forward()
    rules.check_backward()
    rules.check_messages()
    rules.check_leftovers()
    rules.check_reductions()
    rules.check_missing()
    rules.raise_first()
    _check_edges(program)
    _ = program.graph  # cannot be built where ranks wait for each other for ever
    if memory is not None or caps is not None:
        _check_memory(program, memory, caps)


def _check_shape(program: Program) -> None:
    if not program.ranks or not program.stage_rank:
        raise ProgramError("a program needs at least one rank and one stage")
    if program.microbatches < 1:
        raise ProgramError(f"a step of {program.microbatches} microbatches has nothing to do; 1 would be the least")
    check_stages(program.stage_rank, len(program.ranks), program.tied)


def _check_places(program: Program) -> None:
    """Every action's stage is on its rank, and its microbatch exists: what all other rules take for granted."""
    table = program.table
    has_stage, has_microbatch = ~table.is_kind(Norm, Step), ~table.is_kind(Norm, Step, ReduceTied, ReduceGrad)
    exists = (table.stage >= 0) & (table.stage < program.stages)
    owner = np.array(program.stage_rank)[np.where(exists, table.stage, 0)]
    misplaced = has_stage & (~exists | (owner != table.rank))
    beyond = has_microbatch & ((table.microbatch < 0) | (table.microbatch >= program.microbatches))
    for row in np.flatnonzero(misplaced | beyond)[:1]:
        reason = (
            f"stage {table.stage[row]} is not on this rank"
            if misplaced[row]
            else f"microbatches run from 0 to {program.microbatches - 1}"
        )
        raise ProgramError(_failure(program, int(row), reason))


class _Rules:
    """Gathers what is wrong, each with the row at which it shows."""

    def __init__(self, program: Program) -> None:
        self.program, self.table = program, program.table
        stages, ranks = program.stages, np.array(program.stage_rank)
        self.wrong: list[tuple[int, str]] = []
        self.missing: list[tuple[int, Action]] = []  # by rank
        self.left: list[tuple[int, str]] = []  # at the end of a rank without NORM
        self.rows = {kind: self.table.rows(kind, stages, program.microbatches) for kind in MicrobatchAction.__args__}
        self.is_first, self.is_last = np.zeros((stages, 1), bool), np.zeros((stages, 1), bool)
        self.is_first[0] = self.is_last[-1] = True
        self.local_before, self.local_after = np.zeros((stages, 1), bool), np.zeros((stages, 1), bool)
        self.local_before[1:, 0] = ranks[1:] == ranks[:-1]  # the neighbour is on the same rank: nothing is sent
        self.local_after[:-1, 0] = self.local_before[1:, 0]
        self.gradient = np.maximum(self.rows[Backward], self.rows[InputBackward])  # makes the input gradient
        self.weights = np.maximum(self.rows[Backward], self.rows[WeightBackward])  # completes the backward
        self.norm = [self._first(span, Norm) for span in self.table.spans()]
        self.step = [self._first(span, Step) for span in self.table.spans()]

    def _first(self, span: slice, kind: type[Action]) -> int:
        """The row of a rank's first action of a kind, or the row after its last."""
        found = np.flatnonzero(self.table.is_kind(kind)[span])
        begin: int = span.start
        end: int = span.stop
        return begin + int(found[0]) if len(found) else end

    def _forbid(self, rows: Ints, reason: str) -> None:
        """The first of these rows is wrong."""
        if rows.size:
            self.wrong.append((int(rows.min()), reason))

    def _require(self, rows: Ints, before: Ints, where: Mask, reason: str) -> None:
        """Wherever an action stands at `rows` and `where` holds, one must stand at `before`, earlier."""
        self._forbid(rows[(rows >= 0) & where & ((before < 0) | (before > rows))], reason)

    def check_once(self) -> None:
        """Nothing twice, nothing between NORM and STEP, nothing after STEP."""
        table = self.table
        identity = table.kind * (self.program.stages + 1) + table.stage + 1  # what has no stage or microbatch has -1
        identity = identity * (self.program.microbatches + 1) + table.microbatch + 1
        by_identity = np.lexsort((np.arange(len(identity)), identity, table.rank))
        same = (np.diff(identity[by_identity]) == 0) & (np.diff(table.rank[by_identity]) == 0)
        row = np.arange(len(table.kind))
        after_step = row > np.array(self.step)[table.rank]
        after_norm = (row > np.array(self.norm)[table.rank]) & ~table.is_kind(Norm, Step)
        self._forbid(row[after_step], "it comes after STEP")
        self._forbid(row[after_norm], "it comes after NORM")
        self._forbid(by_identity[1:][same], "it appears twice")
        for norm, step, rows in zip(self.norm, self.step, table.spans(), strict=True):
            if step < rows.stop and norm > step:
                self.wrong.append((step, "NORM has not run"))

    def check_forward(self) -> None:
        """A forward has its input."""
        forward, anywhere = self.rows[Forward], np.ones_like(self.rows[Forward], bool)
        self._require(
            forward,
            self.rows[ReceiveForward],
            anywhere & ~self.is_first & ~self.local_before,
            "its input was not received",
        )
        before = np.vstack([forward[:1], forward[:-1]])
        self._require(forward, before, anywhere & self.local_before, "its input has not been computed")

    def check_backward(self) -> None:
        """A backward has its forward and its output's gradient, and is whole or in halves."""
        if self.program.forward_only:
            kinds = (Backward, InputBackward, WeightBackward, ReduceTied, ReduceGrad, Norm, Step)
            rows = np.flatnonzero(self.table.is_kind(*kinds, SendBackward, ReceiveBackward, ReleaseBackward))
            self._forbid(rows, "a forward-only program does not train")
        after = np.vstack([self.gradient[1:], self.gradient[-1:]])
        anywhere = np.ones_like(after, bool)
        for kind in (Backward, InputBackward):
            rows = self.rows[kind]
            self._require(rows, self.rows[Forward], anywhere, "its forward has not run")
            remote = anywhere & ~self.is_last & ~self.local_after
            self._require(rows, self.rows[ReceiveBackward], remote, "its output gradient was not received")
            self._require(rows, after, anywhere & self.local_after, "its output gradient has not been computed")
        whole, half, weight = self.rows[Backward], self.rows[InputBackward], self.rows[WeightBackward]
        self._require(weight, half, anywhere, "its input half has not run")
        both = (whole >= 0) & (half >= 0)
        self._forbid(np.maximum(whole, half)[both], "this backward is computed whole and in halves")

    def check_messages(self) -> None:
        """What is sent exists and has somewhere to go; what is released was sent."""
        anywhere = np.ones_like(self.gradient, bool)
        ends = (
            (SendForward, self.is_last, self.local_after, "the last stage has nobody after it", "after"),
            (ReceiveBackward, self.is_last, self.local_after, "the last stage has nobody after it", "after"),
            (SendBackward, self.is_first, self.local_before, "the first stage has nobody before it", "before"),
            (ReceiveForward, self.is_first, self.local_before, "the first stage has nobody before it", "before"),
        )
        for kind, at_end, local, reason, side in ends:
            rows = self.rows[kind]
            self._forbid(rows[(rows >= 0) & at_end], reason)
            self._forbid(rows[(rows >= 0) & local], f"the stage {side} it is on the same rank: nothing travels")
        sends = ((SendForward, self.rows[Forward], "output"), (SendBackward, self.gradient, "input gradient"))
        for kind, made, what in sends:
            self._require(self.rows[kind], made, anywhere, f"its {what} does not exist here")
        for kind, release in ((SendForward, ReleaseForward), (SendBackward, ReleaseBackward)):
            self._require(self.rows[release], self.rows[kind], anywhere, "it was not sent")

    def check_leftovers(self) -> None:
        """By NORM, or the end, everything that was made is freed."""
        freed = self.rows[Forward] if self.program.forward_only else self.weights
        lives: list[tuple[type[MicrobatchAction], Ints]] = [
            (SendForward, self.rows[ReleaseForward]),
            (SendBackward, self.rows[ReleaseBackward]),
            (ReceiveForward, freed),
            (ReceiveBackward, self.gradient),
        ]
        if not self.program.forward_only:
            lives.append((Forward, freed))
        limit = np.array(self.norm)[np.array(self.program.stage_rank)][:, None]
        held: dict[int, list[Action]] = {}
        for kind, end in lives:
            rows = self.rows[kind]
            for stage, microbatch in np.argwhere((rows >= 0) & (rows < limit) & ((end < 0) | (end > limit))).tolist():
                held.setdefault(self.program.stage_rank[stage], []).append(kind(stage, microbatch))
        for rank, actions in held.items():
            reason = f"{action_text(min(actions, key=action_text))} is still held"
            if self.norm[rank] < self.table.begins[rank + 1]:
                self.wrong.append((self.norm[rank], reason))
            else:
                self.left.append((rank, reason))

    def check_reductions(self) -> None:
        """Each stage's gradients are reduced once, after the last of them, where the program has replicas or ties.

        The weight that stages of one rank share is complete, and may be reduced, once all of them have added to it.
        """
        if self.program.forward_only:
            return  # `check_backward` forbids all of them
        tied = np.zeros(self.program.stages, bool)
        tied[[stage for group in self.program.tied_apart for stage in group]] = True
        last = self.weights.max(axis=1)
        reductions: tuple[tuple[type[ReduceTied | ReduceGrad], Mask, str], ...] = (
            (ReduceTied, tied, "its weights are tied to no other rank's"),
            (ReduceGrad, np.full(self.program.stages, self.program.reduces), "this program has no replicas"),
        )
        complete = np.full(self.program.stages, -1)  # the weights that a stage shares on its rank have all of theirs
        for kind, wanted, reason in reductions:
            rows = np.full(self.program.stages, -1)
            own = np.flatnonzero(self.table.is_kind(kind))[::-1]
            rows[self.table.stage[own]] = own
            self._forbid(rows[(rows >= 0) & ~wanted], reason)
            self._forbid(rows[(rows >= 0) & (last > rows)], "gradients are still added to after it")
            self._forbid(rows[(rows >= 0) & (complete > rows)], "the gradients of tied weights are not complete")
            self.missing += [
                (self.program.stage_rank[s], kind(s)) for s in np.flatnonzero(wanted & (rows < 0)).tolist()
            ]
            complete = self._last_of_group(np.maximum(rows, last))

    def _last_of_group(self, rows: Ints) -> Ints:
        """For each tied stage, the last of these rows of its group's stages on its rank; -1 for all others."""
        last = np.full(self.program.stages, -1)
        ranks = np.array(self.program.stage_rank)
        for group in map(list, self.program.tied):
            for rank in set(ranks[group].tolist()):
                here = [stage for stage in group if ranks[stage] == rank]
                last[here] = rows[here].max()
        return last

    def check_missing(self) -> None:
        """What must have happened by a rank's end, causes before consequences."""
        forward_only = self.program.forward_only
        to_send = ~self.is_last & ~self.local_after & (self.rows[SendForward] < 0)
        to_return = ~self.is_first & ~self.local_before & (self.rows[SendBackward] < 0) & (not forward_only)
        owed: tuple[tuple[type[MicrobatchAction], Mask], ...] = (
            (WeightBackward, (self.rows[InputBackward] >= 0) & (self.rows[WeightBackward] < 0)),
            (Forward, self.rows[Forward] < 0),
            (Backward, (self.gradient < 0) & (not forward_only)),
            (SendForward, to_send),
            (SendBackward, to_return),
        )
        found: list[tuple[int, Action]] = []
        for kind, lacking in owed:
            for stage, microbatch in np.argwhere(lacking)[:1].tolist():
                found.append((self.program.stage_rank[stage], kind(stage, microbatch)))
        self.missing = found + self.missing
        if not forward_only:
            for rank, (norm, step, rows) in enumerate(zip(self.norm, self.step, self.table.spans(), strict=True)):
                self.missing += [(rank, Norm())] if norm == rows.stop else []
                self.missing += [(rank, Step())] if step == rows.stop else []

    def raise_first(self) -> None:
        """Name what is wrong at the earliest row; what is missing or left over on a rank shows at its end."""
        ends = self.table.begins[1:]
        found = [
            (int(ends[rank]), 0, f"rank {rank}: {action_text(action)}: it is missing") for rank, action in self.missing
        ]
        found += [(int(ends[rank]), 1, f"rank {rank}: at its end: {reason}") for rank, reason in self.left]
        found += [(row, 2, _failure(self.program, row, reason)) for row, reason in self.wrong]
        if found:
            raise ProgramError(min(found, key=lambda wrong: wrong[:2])[2])


def _failure(program: Program, row: int, reason: str) -> str:
    rank = int(program.table.rank[row])
    action = program.ranks[rank][row - int(program.table.begins[rank])]
    return f"rank {rank}: {action_text(action)}: {reason}"


def _check_edges(program: Program) -> None:
    """Both ends of every directed edge between two ranks must see the same messages in the same order."""
    ranks = np.array(program.stage_rank)
    sent, received = _messages(program, ranks, sends=True), _messages(program, ranks, sends=False)
    if sent.shape == received.shape and (sent == received).all():
        return
    edges = {(int(source), int(target)) for source, target in np.vstack([sent[:, :2], received[:, :2]])}
    for edge in sorted(edges):
        outgoing, incoming = (own[(own[:, :2] == edge).all(axis=1)][:, 2:].tolist() for own in (sent, received))
        for position in range(max(len(outgoing), len(incoming))):
            out = _send_text(outgoing[position]) if position < len(outgoing) else "nothing"
            into = _send_text(incoming[position]) if position < len(incoming) else "nothing"
            if out != into:
                raise ProgramError(
                    f"rank {edge[0]} to rank {edge[1]}: message {position} is {out} where it is sent, "
                    f"but {into} is expected where it is received"
                )


def _messages(program: Program, ranks: Ints, sends: bool) -> Ints:
    """Messages edge by edge, in the order of one end; columns: sender, receiver, whether backward, stage, microbatch.

    The stage is the sender's.
    """
    table = program.table
    kinds = (SendForward, SendBackward) if sends else (ReceiveForward, ReceiveBackward)
    rows = np.flatnonzero(table.is_kind(*kinds))
    backward = table.is_kind(kinds[1])[rows]
    stage = table.stage[rows]
    other = stage + np.where(backward == sends, -1, 1)
    source, target = (ranks[stage], ranks[other]) if sends else (ranks[other], ranks[stage])
    columns = (source, target, backward, stage if sends else other, table.microbatch[rows])
    by_edge = np.lexsort((rows, target, source))
    return np.stack(columns, axis=1).astype(np.int64)[by_edge]


def _send_text(message: Sequence[int]) -> str:
    backward, stage, microbatch = message
    return action_text(SendBackward(stage, microbatch) if backward else SendForward(stage, microbatch))


def _check_memory(program: Program, memory: Sequence[StageMemory] | None, caps: Sequence[float] | None) -> None:
    if memory is None:
        raise ProgramError("caps are held against bytes of each stage; with memory they can be")
    if len(memory) != program.stages:
        raise ProgramError(f"memory is of {len(memory)} stages; the program has {program.stages}")
    if caps is not None and len(caps) != len(program.ranks):
        raise ProgramError(f"caps are of {len(caps)} ranks; the program has {len(program.ranks)}")
    for rank, cap in enumerate(caps or ()):
        if isnan(cap):  # no number of bytes is more than that
            raise ProgramError(f"caps: rank {rank} may hold {cap:g} bytes; a number, inf for no cap, would do")
    for rank, actions in enumerate(program.ranks):
        if not actions:
            continue  # it has no stage either, or its forwards would be missing
        held = rank_memory(program, memory, rank)
        least = int(np.argmin(held.after_bytes))
        if held.after_bytes[least] < held.begin_bytes:
            raise ProgramError(f"rank {rank}: {action_text(actions[least])}: it frees more bytes than are held")
        if held.after_bytes[-1] != held.begin_bytes:
            left = format_bytes(int(held.after_bytes[-1]) - held.begin_bytes)
            raise ProgramError(f"rank {rank}: at its end: {left} are still held")
        worst = int(np.argmax(held.peak_bytes))
        if caps is not None and held.peak_bytes[worst] > caps[rank]:
            raise ProgramError(
                f"rank {rank}: {action_text(actions[worst])}: the rank holds "
                f"{format_bytes(int(held.peak_bytes[worst]))} of {format_bytes(caps[rank])}"
            )
