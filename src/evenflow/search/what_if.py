"""What a step would be, were one of its ranks faster."""

from __future__ import annotations

from dataclasses import replace

from evenflow.plan import Plan
from evenflow.search.hardware import plan_hardware
from evenflow.simulate import replayed_step_s, step_seconds
from evenflow.timeline import Faster, Straggler, Timeline, critical_path, path_seconds

_MOST_RANKS = 8  # those that the step waits for most: each costs a simulation
_TENTH = 1.1


def were_faster(plan: Plan, timeline: Timeline, rank: int, speed: float) -> Faster:
    """The step, were `rank` so many times as fast.

    A predicted step is simulated again. A measured one is played again from what each action took, with that rank's
    forwards, backwards, norm and update shortened; the gain of that is applied to the measured step.

    Raises:
        InputError: the speed is not more than 0.
    """
    hardware = plan_hardware(plan)
    speeds = [1.0] * len(timeline.ranks)
    speeds[rank] = speed
    if timeline.origin == "predicted":
        step_s = step_seconds(timeline.program, replace(hardware, speeds=speeds))
        return Faster(rank, speed, step_s, timeline.step_s)
    now = replayed_step_s(timeline, hardware, [1.0] * len(speeds))
    then = replayed_step_s(timeline, hardware, speeds)
    return Faster(rank, speed, timeline.step_s * then / now, timeline.step_s)


def each_faster(plan: Plan, timeline: Timeline, speed: float = _TENTH) -> tuple[Faster, ...]:
    """`were_faster` of each rank; of many, only of those with most of the critical path. The largest gain first."""
    spent = path_seconds(critical_path(timeline), len(timeline.ranks))
    ranks = sorted(range(len(timeline.ranks)), key=lambda rank: -(spent[rank]["busy"] + spent[rank]["optimizer"]))
    found = [were_faster(plan, timeline, rank, speed) for rank in ranks[:_MOST_RANKS]]
    return tuple(sorted(found, key=lambda own: own.step_s))


def were_on_time(plan: Plan, measured: Timeline, late: Straggler) -> Faster:
    """The step, were a straggler as fast as the others: as fast as it was expected to be."""
    own = measured.ranks[late.rank]
    return were_faster(plan, measured, late.rank, own.busy_s / late.expected_s)
