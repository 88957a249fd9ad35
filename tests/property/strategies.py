"""What chance may choose: schedules, placements, tied stages, and orders that nobody designed."""

from __future__ import annotations

from functools import cache
from random import Random

from hypothesis import strategies as st

from evenflow.cost import StageCost
from evenflow.program import (
    SCHEDULES,
    Backward,
    Compute,
    Forward,
    InputBackward,
    Order,
    Placement,
    Program,
    WeightBackward,
    Work,
    compute_order,
    default_stage_rank,
    evaluation_program,
    even_work,
    lower,
    place,
)

FORWARD_ONLY = "forward only"

seeds = st.integers(0, 10**6)
schedules = st.sampled_from([*SCHEDULES, FORWARD_ONLY])
order_of = cache(compute_order)  # the schedules that search for their order take a while


@st.composite
def layouts(draw, schedule: str, most_ranks: int = 4, most_turns: int = 3) -> tuple[int, ...]:
    """The rank of each stage, as a schedule allows it; also numbers of stages that the ranks do not divide."""
    ranks = draw(st.integers(1, most_ranks))
    if schedule in SCHEDULES and SCHEDULES[schedule].exactly:
        return default_stage_rank(schedule, ranks)
    placement: Placement = draw(st.sampled_from(["one", "loop", "v"]))
    return place(placement, ranks, ranks if placement == "one" else draw(st.integers(ranks, most_turns * ranks)))


@st.composite
def tied_groups(draw, stages: int) -> tuple[tuple[int, ...], ...]:
    """Groups of stages that share weights, none in two of them; often there are none."""
    stages_in = draw(st.permutations(range(stages)))
    sizes = draw(st.lists(st.integers(2, 3), max_size=2))
    groups = []
    for size in sizes:
        group, stages_in = stages_in[:size], stages_in[size:]
        if len(group) > 1:
            groups.append(tuple(sorted(group)))
    return tuple(groups)


@st.composite
def programs(draw, schedule: str, most_ranks: int = 4, most_microbatches: int = 10) -> Program:
    """A program of a schedule."""
    ranks, microbatches = draw(layouts(schedule, most_ranks)), draw(st.integers(1, most_microbatches))
    if schedule == FORWARD_ONLY:
        return evaluation_program(ranks, microbatches)
    order = order_of(schedule, ranks, microbatches)
    return lower(order, ranks, microbatches, reduces=draw(st.booleans()), tied=draw(tied_groups(len(ranks))))


any_program = schedules.flatmap(programs)


@st.composite
def placements_nobody_designed(draw) -> tuple[int, ...]:
    """Any stage on any rank."""
    owners = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    return tuple(sorted(set(owners)).index(owner) for owner in owners)


@st.composite
def random_work(draw, stage_rank: tuple[int, ...], microbatches: int) -> Work:
    """Costs of any kind, none among them."""
    seconds = st.sampled_from([0.0, 0.1, 0.3, 1.0, 2.5])
    work = even_work(stage_rank, microbatches)
    costs = [draw(st.tuples(seconds, seconds, seconds)) for _ in stage_rank]
    return Work(
        stage_rank=stage_rank,
        microbatches=microbatches,
        costs=tuple(StageCost(forward, half + weight, half, weight) for forward, half, weight in costs),
        transfer_s=tuple(draw(seconds) for _ in stage_rank[1:]),
        saved=work.saved,
        pending=work.pending,
        cap=work.cap,
    )


def random_order(random: Random, stage_rank: tuple[int, ...], microbatches: int, together: bool) -> Order:
    """An order nobody designed: whole backwards and halves, microbatches in another order on each stage.

    Where ranks run `together`, each takes what can run, so the order cannot deadlock; else each rank is made up
    by itself, with only what it makes itself in its place.
    """
    stages = len(stage_rank)
    halves = {(stage, k): random.random() < 0.5 for stage in range(stages) for k in range(microbatches)}
    done: set[Compute] = set()
    left: list[Compute] = []
    for (stage, k), in_halves in halves.items():
        left += [Forward(stage, k)]
        left += [InputBackward(stage, k), WeightBackward(stage, k)] if in_halves else [Backward(stage, k)]
    order: list[list[Compute]] = [[] for _ in range(max(stage_rank) + 1)]

    def gradient(stage: int, k: int) -> Compute:
        return InputBackward(stage, k) if halves[stage, k] else Backward(stage, k)

    def needs(action: Compute) -> list[Compute]:
        stage, k = action.stage, action.microbatch
        match action:
            case Forward():
                return [Forward(stage - 1, k)] if stage else []
            case WeightBackward():
                return [InputBackward(stage, k)]
            case _:
                after = [gradient(stage + 1, k)] if stage + 1 < stages else []
                return [Forward(stage, k), *after]

    def can_run(action: Compute) -> bool:
        own = stage_rank[action.stage]
        return all(need in done or (not together and stage_rank[need.stage] != own) for need in needs(action))

    while left:
        action = random.choice([action for action in left if can_run(action)])
        left.remove(action)
        done.add(action)
        order[stage_rank[action.stage]].append(action)
    return tuple(map(tuple, order))
