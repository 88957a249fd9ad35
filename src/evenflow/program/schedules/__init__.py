"""Schedules by name. A new one is one file here and one line in `SCHEDULES`.

A schedule is a function of the number of stages (one stage on each rank) and microbatches that returns
each rank's compute actions in order.
"""

from __future__ import annotations

from collections.abc import Callable

from evenflow.errors import InputError
from evenflow.program.actions import Compute
from evenflow.program.schedules.gpipe import gpipe
from evenflow.program.schedules.one_f_one_b import one_f_one_b

Schedule = Callable[[int, int], tuple[tuple[Compute, ...], ...]]

SCHEDULES: dict[str, Schedule] = {
    "1f1b": one_f_one_b,
    "gpipe": gpipe,
}


def compute_order(name: str, stages: int, microbatches: int) -> tuple[tuple[Compute, ...], ...]:
    """Each rank's compute actions under the schedule called `name`.

    Raises:
        InputError: there is no such schedule.
    """
    if name not in SCHEDULES:
        raise InputError(f"schedule {name!r} is not known; {', '.join(SCHEDULES)} are")
    return SCHEDULES[name](stages, microbatches)
