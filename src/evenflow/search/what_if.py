"""What a step would be, were one of its ranks faster; and all else that simulations say of it for a report."""

from __future__ import annotations

from dataclasses import replace

from evenflow.plan import Plan
from evenflow.search.hardware import plan_hardware
from evenflow.search.replay import compare_schedules
from evenflow.simulate import replayed_step_s, step_seconds
from evenflow.timeline import (
    BUSY,
    Faster,
    Findings,
    Straggler,
    Timeline,
    critical_path,
    path_seconds,
    stragglers,
)

_MOST_RANKS = 8  # those that the step waits for most: each costs a simulation
_TENTH = 1.1
_ALL_COMPARED = 32  # ranks x microbatches: beyond, making every schedule takes seconds and soon minutes


def find_out(plan: Plan, predicted: Timeline, measured: Timeline | None, with_schedules: bool) -> Findings:
    """What a report says of a step beside its timelines; other schedules take a moment, so a page alone asks."""
    shown = measured or predicted
    large = len(plan.ranks) * plan.microbatches > _ALL_COMPARED
    compared = compare_schedules(plan, quickly=large) if with_schedules else ()
    schedules = tuple((own.schedule, own.plan, own.reason) for own in compared)
    if len(plan.ranks) == 1:
        return Findings(compared=schedules)
    late = stragglers(predicted, measured) if measured else ()
    return Findings(
        faster=each_faster(plan, shown),
        late=tuple((own, were_on_time(plan, predicted, shown, own)) for own in late),
        compared=schedules,
    )


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
        own = [now * more for now, more in zip(hardware.speeds or [1.0] * len(speeds), speeds, strict=True)]
        step_s = step_seconds(timeline.program, replace(hardware, speeds=own))
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


def were_on_time(plan: Plan, predicted: Timeline, measured: Timeline, late: Straggler) -> Faster:
    """The measured step, were a straggler's every forward and backward as long as it was expected to be.

    That is not the same as a rank that is faster all over: what delays a rank may be in some of its actions alone.
    """
    ours, theirs = predicted.ranks[late.rank], measured.ranks[late.rank]
    pace = late.expected_s / ours.busy_s if ours.busy_s > 0 else 1.0
    lengths = [
        pace * expected.seconds if type(expected.action) in BUSY else found.seconds
        for expected, found in zip(ours.events, theirs.events, strict=True)
    ]
    hardware, speeds = plan_hardware(plan), [1.0] * len(measured.ranks)
    now = replayed_step_s(measured, hardware, speeds)
    then = replayed_step_s(measured, hardware, speeds, {late.rank: lengths})
    return Faster(late.rank, theirs.busy_s / late.expected_s, measured.step_s * then / now, measured.step_s)
