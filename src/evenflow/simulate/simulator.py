"""The simulator: reads a program and what its actions cost, returns the timeline it would have.

Ranks take their actions in order, each as soon as it can; who waits for what stands in the program's graph
(`program/graph.py`), whose nodes are already in an order in which they can happen. So a step is one pass:

* F, B, I and W start once their input has arrived and last as long as their stage costs.
* A transfer starts once it was sent, its receive was posted and its wire is free, keeps the wire for
  bytes / bandwidth and arrives a latency later.
* RELEASE waits for its transfer to end; posting a send or a receive takes no time but the overhead of an action.
* The overhead of an action is before it, and before it waits: a rank takes an action, then waits for what it needs.
* Reductions run one after another beside a rank's compute; NORM waits for them.
* STEP waits for every rank's NORM and for combining them.

Where ranks outnumber processors, or wires are shared, what happens first decides: `shared.py` plays that.

A step follows a step: ranks begin where their STEP before left them, so ranks with less to update begin
earlier, just as they do in a run.
"""

from __future__ import annotations

import numpy as np

from evenflow.cost import LinkCost, Links
from evenflow.program import Program, rank_memory
from evenflow.simulate.seconds import Floats, Hardware, NodeCosts, check_hardware, node_costs
from evenflow.simulate.shared import play_shared
from evenflow.timeline import RankTimeline, Timeline

_SAME = 1e-12  # floats that differ by less, relative to their size, are one moment


def simulate(program: Program, hardware: Hardware) -> Timeline:
    """Predict one step of `program`.

    Raises:
        InputError: the hardware is not that of this program, or a figure of it is no amount.
        ProgramError: the ranks wait for each other for ever.
    """
    check_program(program, hardware)
    costs = node_costs(program, hardware)
    starts, ends = play_nodes(program, costs, hardware)
    graph, table = program.graph, program.table
    takes_time = graph.row_node >= 0
    clock = ends[graph.row_clock]
    posted = clock + hardware.overhead_s * graph.row_actions
    released = np.maximum(posted, ends[graph.row_transfer])
    row_end = np.where(takes_time, ends[graph.row_node], released)
    row_start = np.where(takes_time, starts[graph.row_node], posted - hardware.overhead_s)
    begun, finished = ends[1 : len(program.ranks) + 1], ends[list(graph.last)]
    longest = (finished - begun).max()  # the step ends for all when it ends for the last
    finished = np.where(finished - begun < longest * (1 - _SAME), begun + longest, finished)
    ranks: list[RankTimeline] = []
    for rank, rows in enumerate(table.spans()):
        held = rank_memory(program, hardware.memory, rank)
        ranks.append(
            RankTimeline(
                begin_s=float(ends[rank + 1]),
                end_s=float(finished[rank]),
                actions=program.ranks[rank],
                starts=tuple(row_start[rows].tolist()),
                ends=tuple(row_end[rows].tolist()),
                peak_bytes=int(held.peak_bytes.max(initial=0)),
                memory=tuple(held.after_bytes.tolist()),
            )
        )
    return Timeline("predicted", program, tuple(ranks), overhead_s=hardware.overhead_s)


def step_seconds(program: Program, hardware: Hardware, checked: bool = False) -> float:
    """Seconds of one step of `program`, as `simulate` predicts them: the time alone, for whoever compares many.

    Args:
        program: one step's actions.
        hardware: what it runs on.
        checked: `check_hardware` has let it pass for these stages and ranks, so that it need not look again.

    Raises:
        InputError, ProgramError: as `simulate` does.
    """
    if not checked:
        check_program(program, hardware)
    _, ends = play_nodes(program, node_costs(program, hardware), hardware)
    finished = ends[list(program.graph.last)]
    return float((finished - ends[1 : len(program.ranks) + 1]).max())


def check_program(program: Program, hardware: Hardware) -> None:
    """Refuse hardware that is not that of `program`."""
    check_hardware(program.stages, len(program.ranks), len(program.tied), hardware)


def free_transfers() -> LinkCost:
    """A link that costs nothing: what a schedule is worth on its own (`schedule_bound`)."""
    return LinkCost(0.0, float("inf"))


def play_nodes(program: Program, costs: NodeCosts, hardware: Hardware) -> tuple[Floats, Floats]:
    """When each node starts, and when it ends."""
    links = hardware.links
    crowded = hardware.at_once is not None and hardware.at_once < len(program.ranks)
    if crowded or (isinstance(links, Links) and links.shared):
        processors = min(hardware.at_once or len(program.ranks), len(program.ranks))
        return play_shared(program.graph, costs, processors, links.shared if isinstance(links, Links) else ())
    graph, ends = program.graph, np.array(_play(program, costs))
    # Not the end less the seconds: in floats that would be a little off the end of what stands before it.
    after, needs, also = ends[graph.after], ends[graph.needs], ends[graph.also] - costs.lag
    if costs.delays is not None:
        after, needs, also = after + costs.delays[0], needs + costs.delays[1], also + costs.delays[2]
    return np.maximum(np.maximum(after, needs), also), ends


def _play(program: Program, costs: NodeCosts) -> list[float]:
    """One pass over the graph: when each node ends."""
    graph = program.graph
    if costs.delays is not None:
        return _play_delayed(program, costs, costs.delays)
    end = [costs.begin_s]
    add = end.append
    columns = (graph.after, graph.needs, graph.also, costs.lag, costs.seconds)
    for after, needs, also, lag, seconds in zip(*(column[1:].tolist() for column in columns), strict=True):
        ready = end[after]
        if end[needs] > ready:
            ready = end[needs]
        if end[also] - lag > ready:
            ready = end[also] - lag
        add(ready + seconds)
    return end


def _play_delayed(program: Program, costs: NodeCosts, delays: tuple[Floats, Floats, Floats]) -> list[float]:
    """As `_play`, where taking an action costs something."""
    graph = program.graph
    end = [costs.begin_s]
    columns = (graph.after, graph.needs, graph.also, costs.lag, costs.seconds, *delays)
    for after, needs, also, lag, seconds, own, other, third in zip(
        *(column[1:].tolist() for column in columns), strict=True
    ):
        end.append(max(end[after] + own, end[needs] + other, end[also] - lag + third) + seconds)
    return end
