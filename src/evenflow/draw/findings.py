"""What a report says in sentences: who is slow, what the step waits for, and what to change."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.draw.words import plain
from evenflow.plan import Plan
from evenflow.timeline import Blame, Faster, Findings, Straggler, Timeline, blames, critical_path, path_seconds
from evenflow.units import format_percent, format_seconds

_WORDS = {"F": "forward", "B": "backward", "I": "input half", "W": "weight half", "NORM": "norm", "STEP": "update"}
_WORTH = 0.01  # of a step: a gain that is worth a sentence


def blame_text(blame: Blame, short: bool = False) -> str:
    """What idle goes back to: `rank 1's backward of stage 1` (short: without the stage), `rank 0's overhead`."""
    if blame.cause == "work":
        stage = "" if short or blame.stage is None else f" of stage {blame.stage}"
        return f"rank {blame.rank}'s {_WORDS.get(blame.kind, blame.kind)}{stage}"
    if blame.cause == "transfer":
        return f"transfer to or from rank {blame.rank}"
    return f"rank {blame.rank}'s {blame.cause}"


def finding_lines(plan: Plan, shown: Timeline, findings: Findings) -> tuple[str, ...]:
    """A few lines: stragglers first, then what the step waits for, what would help, and the planner's own notes."""
    return (
        *(_late_text(*pair) for pair in findings.late),
        *_path_lines(shown),
        *_faster_lines(findings.faster),
        *_schedule_lines(plan, findings.compared),
        *(plain(note) for note in plan.notes),
    )


def _late_text(late: Straggler, then: Faster) -> str:
    return (
        f"rank {late.rank} is a straggler: its forwards and backwards took {format_seconds(late.busy_s)}, "
        f"{format_seconds(late.late_s)} more than by the plan and the other ranks' pace. As fast as they, "
        f"the step would take {format_seconds(then.step_s)} instead of {format_seconds(then.now_s)}"
    )


def _path_lines(shown: Timeline) -> tuple[str, ...]:
    if len(shown.ranks) == 1:
        return ()
    spent = path_seconds(critical_path(shown), len(shown.ranks))
    total = sum(sum(own.values()) for own in spent) or 1.0
    most = max(range(len(spent)), key=lambda rank: spent[rank]["busy"])
    share = format_percent(spent[most]["busy"] / total)
    held = [own for rank in blames(shown) for own in rank]
    lines = [
        f"the critical path is on rank {most} for {share} of the step's time: making that rank's work shorter helps"
    ]
    for cause, advice in (
        ("transfer", "a faster link, or a larger microbatch that hides it, would help"),
        ("overhead", "fewer, larger microbatches would help"),
    ):
        seconds = sum(own.seconds for own in held if own.cause == cause)
        part = seconds / (len(shown.ranks) * shown.step_s)
        if part > 5 * _WORTH:
            lines.append(f"{cause} makes ranks idle for {format_percent(part)} of their time: {advice}")
    return tuple(lines)


def _faster_lines(faster: Sequence[Faster]) -> tuple[str, ...]:
    if not faster:
        return ()
    best = faster[0]
    by = format_percent(best.speed - 1)
    if best.gain < _WORTH / 2:
        return (f"no single rank made {by} faster would make the step 0.5% faster: the work is even",)
    return (f"were rank {best.rank} {by} faster, the step would be {format_percent(best.gain)} faster",)


def _schedule_lines(plan: Plan, compared: Sequence[tuple[str, Plan | None, str]]) -> tuple[str, ...]:
    possible = [(other.predicted.step_s, name) for name, other, _ in compared if other is not None]
    if not possible:
        return ()
    step_s, name = min(possible)
    gain = plan.predicted.step_s / step_s - 1
    if name == plan.schedule or gain < _WORTH:
        return (
            f"of the schedules compared none is predicted to be 1% faster than {plain(plan.schedule)} on these ranks",
        )
    return (f"schedule {name} is predicted to be {format_percent(gain)} faster, at {format_seconds(step_s)} a step",)
