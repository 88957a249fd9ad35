"""The simulator: reads a program and what its actions cost, returns the timeline it would have.

Ranks take their actions in order, each as soon as it can:

* F and B start once their input has arrived and last as long as their stage costs.
* A transfer starts once it was sent, its receive was posted and the edge is free (one transfer at a time
  on each directed edge), and takes latency + bytes / bandwidth.
* RELEASE waits for its transfer to end; posting a send or a receive takes no time.
* STEP waits for every rank's NORM and for combining them.
* Where ranks outnumber processors, those that compute share them equally.

A step follows a step: ranks begin where their STEP before left them, so ranks with less to update begin
earlier, just as they do in a run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from evenflow.cost import LinkCost, RankCost, StageCost, StageMemory
from evenflow.program import Program, rank_memory
from evenflow.simulate.shared import play_shared
from evenflow.simulate.state import StepState
from evenflow.timeline import RankTimeline, Timeline


def simulate(
    program: Program,
    stages: Sequence[StageCost],
    ranks: Sequence[RankCost],
    link: LinkCost,
    memory: Sequence[StageMemory],
    reduce_s: float = 0.0,
    at_once: int | None = None,
) -> Timeline:
    """Predict one step of `program`.

    Args:
        program: what the ranks do.
        stages: seconds of each stage.
        ranks: seconds of each rank's norm and update.
        link: cost of a transfer between ranks.
        memory: bytes of each stage; the boundary's size is taken from it.
        reduce_s: combining the norms of all ranks.
        at_once: how many ranks can compute at once; by default all.

    Raises:
        ProgramError: the ranks wait for each other for ever.
    """
    state = StepState(program, stages, ranks, link, memory, reduce_s)
    if at_once is None or at_once >= len(program.ranks):
        _play(state)
    else:
        play_shared(state, at_once)
    state.check_finished()
    return Timeline(
        "predicted",
        program,
        tuple(_rank_timeline(state, memory, rank) for rank in range(len(program.ranks))),
    )


def free_transfers() -> LinkCost:
    """A link that costs nothing: what a schedule is worth on its own (`schedule_bound`)."""
    return LinkCost(0.0, float("inf"))


def _play(state: StepState) -> None:
    """Every rank has a processor of its own: each goes as far as it can, whoever it frees goes on."""
    ready = deque(range(len(state.program.ranks)))
    while ready:
        rank = ready.popleft()
        while (action := state.next_action(rank)) is not None:
            start = state.ready_at(action, rank)
            if start is None:
                break
            ready.extend(state.take(action, rank, start, start + state.seconds(action, rank)))


def _rank_timeline(state: StepState, memory: Sequence[StageMemory], rank: int) -> RankTimeline:
    held = rank_memory(state.program, memory, rank)
    return RankTimeline(
        begin_s=state.begin[rank],
        end_s=state.clock[rank],
        events=tuple(state.events[rank]),
        peak_bytes=max(own.peak_bytes for own in held),
        memory=tuple(own.after_bytes for own in held),
    )
