"""Why: the printed gap promises that nothing beats the bound, so all we can build is held against it."""

from __future__ import annotations

from random import Random

import pytest

from evenflow.plan import step_bound
from evenflow.program import SCHEDULES, build_program
from evenflow.simulate import step_seconds
from tests.property.cases import all_splits, costs_of, model_of, random_costs, split_hardware


@pytest.mark.parametrize("with_link", [False, True], ids=["free", "costly"])
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_no_split_and_no_schedule_is_faster(schedule, with_link):
    closest = float("inf")
    for seed in range(60):
        random = Random(seed)
        layers = random.randint(2, 7)
        ranks = random.randint(1, layers // SCHEDULES[schedule].stages_per_rank)
        microbatches = random.choice([1, 2, 3, 5, 8])
        costs = random_costs(random, layers, with_link=with_link)
        model = model_of(layers, output_bytes=random.randint(1, 50))
        program = build_program(schedule, ranks, microbatches)
        bound = step_bound(costs, ranks, microbatches)
        for split in all_splits(layers, program.stages):
            step = step_seconds(program, split_hardware(program, split, costs, model))
            assert step >= bound * (1 - 1e-9), (seed, split)
            closest = min(closest, step / bound)
    assert closest < 1.02, "a bound that nothing comes near says nothing"


def test_one_device_takes_as_long_as_all_its_work():
    costs = costs_of([1.0, 2.0, 3.0], [2.0, 3.0, 5.0], norm=[0.1, 0.2, 0.3], optimizer=[1.0, 1.0, 2.0])
    work = 4 * (1 + 2 + 3 + 2 + 3 + 5) + 0.6 + 4.0
    assert step_bound(costs, 1, 4) == pytest.approx(work)
    program = build_program("1f1b", 1, 4)
    step = step_seconds(program, split_hardware(program, ((0, 1, 2),), costs, model_of(3)))
    assert step == pytest.approx(work)


def test_equal_light_work_is_shared():
    assert step_bound(costs_of([1.0] * 8, [2.0] * 8), 4, 100) == pytest.approx(100 * 8 * 3 / 4)


def test_the_busiest_layer_alone_holds_a_step_up():
    """Layer 2 starts when the first microbatch has come through layers 0 and 1."""
    costs = costs_of([1.0, 1.0, 10.0], [2.0, 2.0, 20.0], norm=[0.0, 0.0, 0.5])
    assert step_bound(costs, 3, 5) == pytest.approx(2.0 + 5 * 30.0 + 0.5)


def test_an_update_hides_behind_the_first_microbatch_or_the_other_way_round():
    short = costs_of([1.0, 10.0], [2.0, 20.0], optimizer=[0.0, 0.4])
    long = costs_of([1.0, 10.0], [2.0, 20.0], optimizer=[0.0, 7.0])
    assert step_bound(short, 2, 5) == pytest.approx(1.0 + 150.0)
    assert step_bound(long, 2, 5) == pytest.approx(7.0 + 150.0)
