"""Schedules by name. A new one is one file here and one line in `SCHEDULES`.

A schedule is a function from `Work` (stages on ranks, microbatches, costs) to each rank's compute actions in order.
In the pictures of these files every action takes one column of time, and a dot is a column in which a rank waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evenflow.errors import InputError
from evenflow.program.actions import Order
from evenflow.program.placement import Placement, place, placement_of
from evenflow.program.schedules.automatic import zb_1p, zb_2p
from evenflow.program.schedules.forward_only import forward_only
from evenflow.program.schedules.gpipe import gpipe
from evenflow.program.schedules.interleaved import interleaved
from evenflow.program.schedules.one_f_one_b import one_f_one_b
from evenflow.program.schedules.zb_h1 import zb_h1
from evenflow.program.schedules.zb_h2 import zb_h2
from evenflow.program.schedules.zb_v import zb_v
from evenflow.program.work import Work, even_work


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a schedule is and what it asks for.

    Attributes:
        make: each rank's compute actions.
        title: what people call it.
        placements: where stages may be.
        stages_per_rank: how many a rank has where nobody says.
        exactly: whether a rank must have just as many.
        halves: whether it runs backwards as I and W.
        by_costs: whether its order depends on costs.
    """

    make: Callable[[Work], Order]
    title: str
    placements: tuple[Placement, ...] = ("one",)
    stages_per_rank: int = 1
    exactly: bool = True
    halves: bool = False
    by_costs: bool = False


_ANY: tuple[Placement, ...] = ("one", "loop", "v")

SCHEDULES: dict[str, Schedule] = {
    "1f1b": Schedule(one_f_one_b, "1F1B"),
    "gpipe": Schedule(gpipe, "GPipe", _ANY, exactly=False),
    "interleaved": Schedule(interleaved, "interleaved 1F1B", ("loop", "one", "v"), 2, exactly=False),
    "zb-h1": Schedule(zb_h1, "ZB-H1", halves=True),
    "zb-h2": Schedule(zb_h2, "ZB-H2", halves=True),
    "zb-1p": Schedule(zb_1p, "ZB-1p", _ANY, exactly=False, halves=True, by_costs=True),
    "zb-2p": Schedule(zb_2p, "ZB-2p", _ANY, exactly=False, halves=True, by_costs=True),
    "zb-v": Schedule(zb_v, "ZB-V", ("v",), 2, halves=True, by_costs=True),
}
AUTO = "auto"  # made by `search` for a plan's own costs, with the simulator as judge
FORWARD_ONLY = Schedule(forward_only, "forward only", _ANY, exactly=False)


def find_schedule(name: str) -> Schedule:
    """The schedule called `name`.

    Raises:
        InputError: there is no such schedule.
    """
    if name not in SCHEDULES:
        raise InputError(f"schedule {name!r} is not known; {', '.join([*SCHEDULES, AUTO])} are")
    return SCHEDULES[name]


def default_stage_rank(name: str, ranks: int, stages_per_rank: int | None = None) -> tuple[int, ...]:
    """Where the schedule called `name` has its stages on so many ranks."""
    schedule = find_schedule(name)
    count = stages_per_rank or schedule.stages_per_rank
    placement = "one" if count == 1 and "one" in schedule.placements else schedule.placements[0]
    if placement == "one" and count > 1 and len(schedule.placements) > 1:
        placement = schedule.placements[1]
    return place(placement, ranks, ranks * count)


def misfit(name: str, stage_rank: Sequence[int]) -> str | None:
    """Why the schedule called `name` cannot run stages on these ranks, and what would do; None where it can."""
    schedule, ranks, stages = find_schedule(name), max(stage_rank) + 1, len(stage_rank)
    placement = placement_of(tuple(stage_rank))
    if schedule.exactly and stages != ranks * schedule.stages_per_rank:
        each = "one stage" if schedule.stages_per_rank == 1 else f"{schedule.stages_per_rank} stages"
        more = "; interleaved takes several" if name == "1f1b" else ""
        wanted = ranks * schedule.stages_per_rank
        stages_text, ranks_text = ("stage", "stages")[wanted > 1], ("rank", "ranks")[ranks > 1]
        return (
            f"{schedule.title} runs {each} on each rank: {wanted} {stages_text} on {ranks} {ranks_text}, "
            f"not {stages}{more}"
        )
    fits = ranks == 1 or placement in schedule.placements  # on a single rank all placements are the same
    if not fits:
        need = " or ".join(schedule.placements)
        return f"{schedule.title} needs its stages in {need} placement, not on the ranks {list(stage_rank)}"
    return None


def tp_misfit(name: str, tp: int) -> str | None:
    """Why stages that are shared out over `tp` processes cannot be run under a schedule; None where they can.

    Their weight gradients are made together with their inputs' (`models.tensor_parallel`), so there is no W.
    """
    if tp == 1 or (name != AUTO and not find_schedule(name).halves):
        return None
    whole = [own for own, schedule in SCHEDULES.items() if not schedule.halves]
    title = AUTO if name == AUTO else find_schedule(name).title
    return (
        f"{title} puts weight gradients off, and under --tp {tp} they are made together with those of inputs; "
        f"{', '.join(whole[:-1])} or {whole[-1]} would do"
    )


def compute_order(name: str, stage_rank: Sequence[int] | int, microbatches: int, work: Work | None = None) -> Order:
    """Each rank's compute actions under the schedule called `name`.

    Args:
        name: the schedule.
        stage_rank: the rank of each stage, or how many ranks there are, with the schedule's own placement.
        microbatches: microbatches of the step.
        work: costs, for schedules that depend on them; by default every action takes a second.

    Raises:
        InputError: there is no such schedule, or it cannot run stages on these ranks.
    """
    schedule = find_schedule(name)
    ranks = default_stage_rank(name, stage_rank) if isinstance(stage_rank, int) else tuple(stage_rank)
    reason = misfit(name, ranks)
    if reason is not None:
        raise InputError(reason)
    return schedule.make(work or even_work(ranks, microbatches))
