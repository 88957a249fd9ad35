"""A step played again from what its actions took, with ranks of another speed or actions of another length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from evenflow.errors import InputError
from evenflow.simulate.seconds import Hardware, node_costs
from evenflow.simulate.simulator import check_program, play_nodes
from evenflow.timeline import Timeline, reasons


def replayed_step_s(
    timeline: Timeline,
    hardware: Hardware,
    speeds: Sequence[float],
    lengths: Mapping[int, Sequence[float]] | None = None,
) -> float:
    """Seconds of a step whose every action takes what it took in `timeline`, on ranks of these speeds.

    Each compute action, NORM and STEP lasts as long as it did, divided by its rank's speed; what its rank spent on its
    own before it (posting sends, the loop) stays. All actions of a rank in `lengths` take the seconds that stand there
    instead. Transfers and reductions cost what `hardware` says. What ranks that share cores cost each other is in the
    measured seconds already, so all of them compute at once here.

    Raises:
        InputError: the hardware is not that of the program, or a speed is not more than 0.
    """
    program = timeline.program
    for rank, speed in enumerate(speeds):
        if not 0 < speed < np.inf:
            raise InputError(f"speeds: rank {rank} has {speed:g}; a finite number above 0 would do")
    if len(speeds) != len(program.ranks):
        raise InputError(f"speeds: there are {len(speeds)}; the program has {len(program.ranks)} ranks")
    alone = replace(hardware, at_once=None, speeds=None, overhead_s=0.0)
    check_program(program, alone)
    costs, graph, why = node_costs(program, alone), program.graph, reasons(timeline)
    seconds = costs.seconds.copy()
    spent = np.concatenate([[0.0], np.cumsum(why.overhead)])
    for rank, rows in enumerate(program.table.spans()):
        timed = np.arange(rows.start, rows.stop)[graph.row_node[rows] >= 0]
        begins = np.concatenate([[rows.start], timed[:-1] + 1])
        took = (why.end[timed] - why.start[timed]) / speeds[rank]
        if lengths is not None and rank in lengths:
            took = np.array(lengths[rank], dtype=np.float64)[timed - rows.start]
        own = spent[timed + 1] - spent[begins]
        seconds[graph.row_node[timed]] = own + took
    ends = play_nodes(program, replace(costs, seconds=seconds), alone)[1]
    finished = ends[list(graph.last)]
    return float((finished - ends[1 : len(program.ranks) + 1]).max())
