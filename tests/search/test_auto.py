"""Why: auto promises to be no slower than any schedule that people know by name, whatever the costs and caps."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from math import inf, nan
from random import Random

import pytest

from benchmarks.uneven import uneven_case
from evenflow.cost import LinkCost, StageCost, StageMemory
from evenflow.errors import ImpossibleError, InputError, ProgramError
from evenflow.program import SCHEDULES, build_program, compute_order, lower, misfit, peak_bytes, place, verify
from evenflow.program.actions import Backward, Forward, InputBackward, WeightBackward
from evenflow.search import make_auto, plan_work
from evenflow.search.advice import would_fit
from evenflow.search.auto import Unfit, find_auto
from evenflow.simulate import Hardware, free_transfers, simulator, step_seconds
from tests.property.cases import NO_MEMORY, NO_RANK_COST
from tests.sweeps import some_of


@some_of(range(12), 0, 1, 2, 4, 5)
def test_never_slower_than_the_best_named_schedule_under_the_same_cap(seed):
    case = uneven_case(seed, most_ranks=5)
    _hold(case)


@some_of(range(10), 1, 2, 3)
def test_never_slower_where_ranks_share_cores(seed):
    _hold(uneven_case(seed, most_ranks=6).crowded())


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(0, 300, 20))
def test_never_slower_on_three_hundred_pipelines_of_up_to_sixteen_ranks(first):
    for seed in range(first, first + 20):
        case = uneven_case(seed)
        _hold(case)
        if seed % 5 == 0:
            _hold(case.crowded())


def _hold(case):
    """One promise, kept exactly: no named schedule that fits is faster, and no order beats the bound."""
    found = make_auto(case.stage_rank, case.microbatches, case.hardware, case.caps)
    verify(found.program, case.hardware.memory, case.caps)
    assert found.step_s == step_seconds(found.program, case.hardware)
    assert found.step_s >= found.bound_s * (1 - 1e-9)
    assert found.step_s <= case.best_named()[0]


def test_never_slower_than_a_named_order_whatever_its_receives_are_posted_by():
    """By the costs or by a second an action; links are slow, so it matters."""
    for seed in range(4, 8):
        case = uneven_case(seed, most_ranks=3)
        hardware = replace(case.hardware, links=LinkCost(0.7, 20.0))
        found = make_auto(case.stage_rank, case.microbatches, hardware, case.caps)
        work = plan_work(case.stage_rank, case.microbatches, hardware)
        for name in SCHEDULES:
            if misfit(name, case.stage_rank) is None:
                order = compute_order(name, case.stage_rank, case.microbatches, work)
                for own in (work, None):
                    program = lower(order, case.stage_rank, case.microbatches, own)
                    peaks = [peak_bytes(program, hardware.memory, rank) for rank in range(len(case.caps))]
                    if all(peak <= cap for peak, cap in zip(peaks, case.caps, strict=True)):
                        assert found.step_s <= step_seconds(program, hardware), (seed, name)


def test_what_is_returned_was_verified_with_its_memory(monkeypatch):
    """Were bytes miscounted while candidates are judged, the proof of the winner would say so."""
    case = uneven_case(5, most_ranks=4)
    monkeypatch.setattr("evenflow.search.auto.peak_bytes", lambda *_: 0)
    with pytest.raises(ProgramError, match=r"the rank holds .* of 1 B"):
        make_auto(case.stage_rank, case.microbatches, case.hardware, [1.0] * len(case.caps))


def test_equals_the_best_of_all_orders_where_they_can_be_counted():
    """Two ranks, two microbatches: every order of every rank is tried; auto finds a best one."""
    for seed in range(4):
        random = Random(seed)
        stages = [StageCost(f, i + w, i, w) for f, i, w in ([random.uniform(0.5, 2) for _ in range(3)] for _ in "ab")]
        hardware = Hardware(stages, [NO_RANK_COST] * 2, free_transfers(), [NO_MEMORY] * 2)
        best = min(
            step_seconds(program, hardware)
            for first in _orders(0)
            for second in _orders(1)
            if _runs(program := lower((first, second), (0, 1), 2, plan_work((0, 1), 2, hardware)))
        )
        found = make_auto((0, 1), 2, hardware, [1e9, 1e9])
        assert found.step_s == pytest.approx(best, rel=1e-9)
        assert found.bound_s <= best * (1 + 1e-9)


def _orders(stage):
    actions = [kind(stage, k) for kind in (Forward, InputBackward, WeightBackward) for k in (0, 1)]
    for order in permutations(actions):
        place_of = {action: at for at, action in enumerate(order)}
        in_turn = all(
            place_of[Forward(stage, k)] < place_of[InputBackward(stage, k)] < place_of[WeightBackward(stage, k)]
            for k in (0, 1)
        )
        if in_turn and all(place_of[kind(stage, 0)] < place_of[kind(stage, 1)] for kind in {type(a) for a in actions}):
            yield order


def _runs(program):
    try:
        verify(program)
    except ProgramError:  # the orders of the ranks do not go together
        return False
    return True


def test_caps_that_differ_by_rank_are_kept_and_too_small_ones_named():
    case = uneven_case(5, most_ranks=4)
    ranks = len(case.caps)
    one_f_one_b = build_program("1f1b" if misfit("1f1b", case.stage_rank) is None else "gpipe", case.stage_rank, 4)
    caps = [1.0 * peak_bytes(one_f_one_b, case.hardware.memory, rank) for rank in range(ranks)]
    found = make_auto(case.stage_rank, 4, case.hardware, caps)
    verify(found.program, case.hardware.memory, caps)
    with pytest.raises(ImpossibleError, match=r"no schedule fits: rank \d needs .* of 1 B"):
        make_auto(case.stage_rank, 4, case.hardware, [1.0] * ranks)


_STAGES = [StageCost(1.0, 2.0, 1.0, 1.0)] * 2
_TWO = Hardware(_STAGES, [NO_RANK_COST] * 2, free_transfers(), [NO_MEMORY] * 2)


@pytest.mark.parametrize(
    ("stage_rank", "microbatches", "change", "caps", "message"),
    [
        ((), 2, {}, [], r"stage_rank: stages are on the ranks \[\]; one stage or more on each rank"),
        ((0, 2), 2, {}, [1e9] * 3, r"stage_rank: stages are on the ranks \[0, 2\]; one stage or more on each rank"),
        ((0, -1), 2, {}, [1e9], r"stage_rank: stages are on the ranks \[-1, 0\]; one stage or more on each rank"),
        ((0, 1), 0, {}, [1e9] * 2, "a step of 0 microbatches has nothing to do; 1 would be the least"),
        ((0, 1), 10**12, {}, [1e9] * 2, "1000000000000 microbatches through 2 stages are more than"),
        ((0, 1), 2, {}, [1e9], "caps: there are 1; the stages are on 2 ranks, so 2 would do"),
        ((0, 1), 2, {}, [1e9, nan], "caps: rank 1 may hold nan bytes; a number, inf for no cap, would do"),
        ((0, 1), 2, {}, [-inf, 1e9], "caps: rank 0 may hold -inf bytes; a number, inf for no cap, would do"),
        ((0, 1, 1), 2, {}, [1e9] * 2, "stages: there are 2; the program has 3 stages, so 3 would do"),
        ((0, 1), 2, {"at_once": 0}, [1e9] * 2, "at_once: 0 ranks compute at once; 1 would be the least"),
        ((0, 1), 2, {"speeds": [0.0, 1.0]}, [1e9] * 2, "speeds: rank 0 has 0; more than 0 would do"),
        ((0, 1), 2, {"speeds": [1.0]}, [1e9] * 2, "speeds: there are 1; the program has 2 ranks, so 2 would do"),
        ((0, 1), 2, {"overhead_s": -1.0}, [1e9] * 2, "overhead_s is -1 seconds; a finite number"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(stage_rank, microbatches, change, caps, message):
    with pytest.raises(InputError, match=message) as caught:
        make_auto(stage_rank, microbatches, replace(_TWO, **change), caps)
    assert "\n" not in str(caught.value)


def test_hardware_is_looked_at_once_however_many_candidates_there_are(monkeypatch):
    looks = []
    monkeypatch.setattr("evenflow.search.auto.check_hardware", lambda *_: looks.append("auto"))
    monkeypatch.setattr(simulator, "check_hardware", lambda *_: looks.append("simulator"))
    case = uneven_case(5, most_ranks=4)
    assert make_auto(case.stage_rank, case.microbatches, case.hardware, case.caps).simulated > 1
    assert looks == ["auto"]


def _tight_case(seed):
    """Up to four ranks with a stage or two each, and what each needs for one microbatch at a time, an order by hand."""
    random = Random(seed)
    ranks, per_rank, microbatches = random.randint(2, 4), random.choice([1, 1, 2]), random.randint(2, 6)
    stage_rank = place(random.choice(["loop", "v"]), ranks, ranks * per_rank)
    last = len(stage_rank) - 1
    costs = [StageCost(1 + random.random(), 2 + random.random(), 1.0, 1.0) for _ in stage_rank]
    wire = random.choice([1, 10, 30])
    memory = []
    for stage in range(last + 1):
        saved, passing = random.choice([40, 60, 100]), [random.choice([0, 10, 40]) for _ in range(3)]
        pending = int(saved * random.uniform(0.2, 0.9))
        memory.append(StageMemory(5, 20, saved, pending, wire if stage else 0, wire if stage < last else 0, *passing))
    hardware = Hardware(costs, [NO_RANK_COST] * ranks, LinkCost(0.1, 1e9), memory)
    order = tuple(
        tuple(
            kind(stage, microbatch)
            for microbatch in range(microbatches)
            for kind, stages in ((Forward, range(last + 1)), (Backward, range(last, -1, -1)))
            for stage in stages
            if stage_rank[stage] == rank
        )
        for rank in range(ranks)
    )
    program = lower(order, stage_rank, microbatches, plan_work(stage_rank, microbatches, hardware))
    return stage_rank, microbatches, hardware, [1.0 * peak_bytes(program, memory, rank) for rank in range(ranks)]


@some_of((3, 4, 7, 8, 12, 13), 4, 8, 12)
def test_finds_a_schedule_under_caps_that_one_microbatch_at_a_time_keeps(seed):
    stage_rank, microbatches, hardware, caps = _tight_case(seed)
    for own in (caps, [max(caps)] * len(caps)):
        found = make_auto(stage_rank, microbatches, hardware, own)
        verify(found.program, hardware.memory, own)


@some_of(range(12), 0, 2, 4, 6, 8)
def test_the_limit_that_a_refusal_names_is_the_least_that_works(seed):
    stage_rank, microbatches, hardware, caps = _tight_case(seed)
    refused = find_auto(stage_rank, microbatches, hardware, [1.0] * len(caps))
    assert isinstance(refused, Unfit)
    assert refused.limit is not None
    assert refused.limit <= max(caps)
    make_auto(stage_rank, microbatches, hardware, [refused.limit] * len(caps))
    with pytest.raises(ImpossibleError, match=would_fit(refused.limit)):
        make_auto(stage_rank, microbatches, hardware, [refused.limit - 1] * len(caps))


@pytest.mark.parametrize("placement", ["loop", "v"])
def test_takes_stages_in_any_placement(placement):
    random = Random(placement)
    stage_rank = place(placement, 3, 7)
    stages = [
        StageCost(1.0, 2.0, 1.0, 1.0) if random.random() < 0.5 else StageCost(1.5, 2.0, 1.5, 0.5) for _ in range(7)
    ]
    hardware = Hardware(stages, [NO_RANK_COST] * 3, LinkCost(0.05, float("inf")), [NO_MEMORY] * 7)
    found = make_auto(stage_rank, 5, hardware, [1e9] * 3)
    named = [
        step_seconds(build_program(name, stage_rank, 5), hardware)
        for name, own in SCHEDULES.items()
        if misfit(name, stage_rank) is None and not own.by_costs
    ]
    assert found.step_s <= min(named)
