"""A problem solved: the split, the program of its schedule, and the timeline that the simulator makes of them."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.errors import ImpossibleError, InputError
from evenflow.plan import Posting
from evenflow.program import AUTO, Order, Program, build_program, lower, placement_of, verify
from evenflow.program.schedules import compute_order
from evenflow.search.auto import make_auto, plan_work
from evenflow.search.problem import Problem, Split
from evenflow.search.splitting import find_split
from evenflow.simulate import simulate
from evenflow.timeline import Timeline
from evenflow.units import format_bytes


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
    searched = build_program(_searched_schedule(problem), problem.stage_rank, problem.microbatches)
    if split is None:
        best, considered = find_split(problem, searched)
        split = best.split
    else:
        _check_split(split, problem)
        considered = 1
    program, order, posting, more = _final_program(problem, split, searched)
    verify(program)
    # Ranks that share cores hide an uneven split from the step; it is chosen as if each had its own, so that it stays
    # even whatever the system makes of the sharing, and only then predicted as it will be.
    timeline = simulate(program, problem.hardware(split))
    _check_memory(problem, split, timeline)
    return Solution(split, program, order, posting, timeline, considered + more)


def _searched_schedule(problem: Problem) -> str:
    """The schedule under which splits are compared: where the order depends on costs, one much like it."""
    if not problem.made_for_costs:
        return problem.schedule
    if problem.schedule == "zb-v":
        return problem.schedule  # for equal costs
    return "zb-h1" if placement_of(problem.stage_rank) == "one" else "interleaved"


def _final_program(problem: Problem, split: Split, searched: Program) -> tuple[Program, Order | None, Posting, int]:
    """The program of the chosen split: its order if it was made for the costs, and how many more were simulated."""
    if not problem.made_for_costs:
        return searched, None, "even", 0
    hardware = problem.hardware(split, is_crowded=False)
    if problem.schedule == AUTO:
        found = make_auto(problem.stage_rank, problem.microbatches, hardware, [problem.limit] * problem.ranks)
        return found.program, found.order, found.posting, found.simulated
    work = plan_work(problem.stage_rank, problem.microbatches, hardware)
    order = compute_order(problem.schedule, problem.stage_rank, problem.microbatches, work)
    return lower(order, problem.stage_rank, problem.microbatches, work), order, "costs", 0


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
        f"{format_bytes(problem.limit)}; a memory limit of {format_bytes(peaks[worst] * 1.005)} would fit, "
        "as may more processes or a smaller microbatch"
    )
