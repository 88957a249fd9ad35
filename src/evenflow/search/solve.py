"""A problem solved: the split, the program of its schedule, and the timeline that the simulator makes of them."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.errors import ImpossibleError, InputError
from evenflow.plan import Posting
from evenflow.program import (
    AUTO,
    SCHEDULES,
    Order,
    Program,
    build_program,
    compute_order,
    even_work,
    lower,
    misfit,
    placement_of,
    verify,
)
from evenflow.program.schedules.few_in_flight import few_in_flight
from evenflow.search.advice import would_fit
from evenflow.search.auto import AutoSchedule, Unfit, find_auto
from evenflow.search.hardware import plan_work
from evenflow.search.order_bound import order_bound_s
from evenflow.search.posting import posted_program
from evenflow.search.problem import Problem, Split
from evenflow.search.splitting import find_split
from evenflow.simulate import simulate
from evenflow.timeline import Timeline
from evenflow.units import format_bytes

# The schedules whose splits `auto` takes up, by whether ranks hold one stage or several: those that hold least, which
# fit where anything does, and those whose fill and drain weigh stages otherwise.
_SPLIT_UNDER_ONE = ("1f1b", "zb-h1", "zb-h2", "gpipe")
_SPLIT_UNDER_SEVERAL = ("interleaved", "zb-v", "gpipe")


@dataclass(frozen=True, slots=True)
class Solution:
    """What a search found.

    Attributes:
        split: the layers of each stage.
        program: the whole program.
        order: its compute order, where the schedule was made for the costs.
        posting: by which times its receives are posted.
        timeline: its simulated step.
        considered: how many plans were simulated.
    """

    split: Split
    program: Program
    order: Order | None
    posting: Posting
    timeline: Timeline
    considered: int


def solve(problem: Problem, split: Split | None = None) -> Solution:
    """Split the layers (or take them as given), make the schedule's program and simulate it.

    Raises:
        InputError: the given split is none of these layers over these stages.
        ImpossibleError: nothing found stays under the memory limit; the closest is named.
    """
    if split is not None:
        _check_split(split, problem)
    solution = _solve_auto(problem, split) if problem.schedule == AUTO else _solve_named(problem, split)
    _check_memory(problem, solution.split, solution.timeline)
    verify(solution.program, problem.hardware(solution.split).memory, [problem.limit] * problem.ranks)
    return solution


def _solve_named(problem: Problem, split: Split | None) -> Solution:
    # Ranks that share cores hide an uneven split from the step; it is chosen as if each had its own, so that it stays
    # even whatever the system makes of the sharing, and only then predicted as it will be.
    searched = searched_program(problem)
    considered = 1
    if split is None:
        best, considered = find_split(problem, searched)
        split = best.split
    hardware = problem.hardware(split)
    work = plan_work(problem.stage_rank, problem.microbatches, hardware)
    order = compute_order(problem.schedule, problem.stage_rank, problem.microbatches, work)
    program, posting = posted_program(
        order, work, hardware, [problem.limit] * problem.ranks, problem.reduces, problem.tied
    )
    kept = order if SCHEDULES[problem.schedule].by_costs else None
    return Solution(split, program, kept, posting, simulate(program, hardware), considered)


def searched_program(problem: Problem) -> Program:
    """The program under which splits are compared, and for which layers that recompute are chosen."""
    return _even_program(problem, _searched_schedule(problem))


def _even_program(problem: Problem, schedule: str) -> Program:
    """The program of a named schedule that knows no costs."""
    return build_program(schedule, problem.stage_rank, problem.microbatches, reduces=problem.reduces, tied=problem.tied)


def _searched_schedule(problem: Problem) -> str:
    """The schedule under which splits are compared: where the order depends on costs, one much like it."""
    if problem.schedule == AUTO:
        return "1f1b" if placement_of(problem.stage_rank) == "one" else "interleaved"
    if not SCHEDULES[problem.schedule].by_costs or problem.schedule == "zb-v":
        return problem.schedule  # ZB-V: for equal costs
    return "zb-h1" if placement_of(problem.stage_rank) == "one" else "interleaved"


def _solve_auto(problem: Problem, split: Split | None) -> Solution:
    """The best of the schedules made for the splits that suit different schedules, which weigh stages differently.

    So nothing that fits under one of those is refused, and nothing that they plan is faster.
    """
    splits, considered = ([split], 1) if split is not None else _auto_splits(problem)
    best, simulated = _best_auto(problem, splits)
    if isinstance(best, Unfit) and split is None:
        lighter = find_split(problem, _one_in_flight(problem))[0].split
        other, simulated = _best_auto(problem, [lighter])
        best = best if isinstance(other, Unfit) and best.over <= other.over else other
    if isinstance(best, Unfit):
        raise ImpossibleError(best.text)
    own, found = best
    timeline = simulate(found.program, problem.hardware(own))
    return Solution(own, found.program, found.order, found.posting, timeline, considered + simulated)


def _best_auto(problem: Problem, splits: list[Split]) -> tuple[tuple[Split, AutoSchedule] | Unfit, int]:
    """The best of the schedules made for each split, or what is closest; and how many were simulated."""
    bounds = {own: _bound_s(problem, own) for own in splits}
    best: tuple[Split, AutoSchedule] | None = None
    closest: Unfit | None = None
    simulated = 0
    for own in sorted(splits, key=bounds.__getitem__):
        if best is not None and bounds[own] >= best[1].step_s:
            break
        caps = [problem.limit] * problem.ranks
        found = find_auto(
            problem.stage_rank, problem.microbatches, problem.hardware(own), caps, problem.reduces, problem.tied
        )
        if isinstance(found, Unfit):
            closest = found if closest is None or found.over < closest.over else closest
            continue
        simulated += found.simulated
        if best is None or found.step_s < best[1].step_s:
            best = own, found
    if best is not None:
        return best, simulated
    assert closest is not None
    return closest, simulated


def _one_in_flight(problem: Problem) -> Program:
    """The program that holds least, under which the split is made where nothing else fits."""
    work = even_work(problem.stage_rank, problem.microbatches)
    order = few_in_flight(work, 1, [False] * problem.stages)
    return lower(order, problem.stage_rank, problem.microbatches, reduces=problem.reduces, tied=problem.tied)


def _auto_splits(problem: Problem) -> tuple[list[Split], int]:
    """The split that each of these schedules would have, and how many were simulated."""
    splits: dict[Split, None] = {}
    considered = 0
    several = problem.stages > problem.ranks
    for name in _SPLIT_UNDER_SEVERAL if several else _SPLIT_UNDER_ONE:
        if misfit(name, problem.stage_rank) is None:
            found, simulated = find_split(problem, _even_program(problem, name))
            splits.setdefault(found.split)
            considered += simulated
    return list(splits), considered


def _bound_s(problem: Problem, split: Split) -> float:
    hardware = problem.hardware(split)
    return order_bound_s(plan_work(problem.stage_rank, problem.microbatches, hardware), hardware)


def _check_split(split: Split, problem: Problem) -> None:
    in_order = [layer for layers in split for layer in layers]
    if in_order != list(range(problem.layers)) or len(split) != problem.stages or not all(split):
        raise InputError(
            f"the split {split} does not put each of the layers 0 to {problem.layers - 1} on one of "
            f"{problem.stages} stages"
        )


def _check_memory(problem: Problem, split: Split, timeline: Timeline) -> None:
    peaks = [own.peak_bytes for own in timeline.ranks]
    worst = max(range(len(peaks)), key=peaks.__getitem__)
    if peaks[worst] <= problem.limit:
        return
    held = [stage for stage, rank in enumerate(problem.stage_rank) if rank == worst]
    if problem.stages == problem.ranks:
        what = f"stage {held[0]} (layers {split[held[0]][0]} to {split[held[0]][-1]})"
    else:
        what = f"rank {worst} (stages {', '.join(map(str, held))})"
    raise ImpossibleError(
        f"no plan fits: the closest has {what} needing {format_bytes(peaks[worst])} of "
        f"{format_bytes(problem.limit)}; {would_fit(peaks[worst])}"
    )
