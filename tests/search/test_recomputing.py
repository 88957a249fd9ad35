"""Why: `auto` must recompute as little as fits, or people pay for memory that they have."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from evenflow.cost import Costs, MemoryModel, analytic_costs
from evenflow.errors import ImpossibleError, InputError
from evenflow.models import describe_model, find_model
from evenflow.program import build_program, peak_bytes
from evenflow.search import make_plan
from evenflow.search.problem import Problem, Split
from evenflow.search.recomputing import cheapest_fit
from evenflow.spec import RECOMPUTES, Batch, Model
from tests.property.cases import cluster_of, costs_of, model_of

SPLIT = ((0, 1, 2, 3), (4, 5, 6, 7))
MODEL = model_of(
    8,
    saved_bytes=[0, *[100] * 6, 0],
    passing_bytes=[0, *[30] * 6, 0],
    recomputed_bytes=(10, 100),
    selective_bytes=60,
    output_bytes=10,
)
COSTS = costs_of([1.0] * 8, recompute=[0.0, *[1.0] * 6, 0.0], selective=[0.0, *[0.3] * 6, 0.0])
BATCH = Batch(4, 1, 16)


def _all_peaks(model: Model, costs: Costs, schedule: str, split: Split, rank: int) -> list[tuple[float, int]]:
    """The seconds and the peak of every way to recompute a rank's blocks."""
    program = build_program(schedule, 2, 4)
    blocks = [layer for layer in split[rank] if model.layers[layer].recomputed]
    peaks = []
    for modes in product(RECOMPUTES, repeat=len(blocks)):
        every = list(model.recomputing("none"))
        for layer, own in zip(blocks, modes, strict=True):
            every[layer] = own
        memory = MemoryModel(model.under(every)).stages(split)
        seconds = sum(costs.layers[layer].again_s(every[layer]) for layer in blocks)
        peaks.append((seconds, peak_bytes(program, memory, rank)))
    return peaks


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
@pytest.mark.parametrize("real", [False, True], ids=["made-up", "llama"])
def test_no_other_way_that_fits_a_split_is_cheaper(make_model: Callable[..., Path], real: bool, schedule: str) -> None:
    model, costs, split = MODEL, COSTS, SPLIT
    if real:
        model, split = describe_model(find_model(str(make_model())), 2, 64), ((0, 1, 2), (3, 4, 5))
        costs = analytic_costs(model, cluster_of(2))
    peaks = [_all_peaks(model, costs, schedule, split, rank) for rank in range(2)]
    for limit in sorted({peak for own in peaks for _, peak in own}):
        modes = cheapest_fit(Problem(model, costs, 4, schedule, (0, 1), limit, 2), model, split)
        least = [min((seconds for seconds, peak in own if peak <= limit), default=None) for own in peaks]
        if modes is None:
            assert None in least
            continue
        for layers, own in zip(split, least, strict=True):
            assert sum(costs.layers[layer].again_s(modes[layer]) for layer in layers) == pytest.approx(own)


def test_auto_recomputes_no_more_than_it_must_and_is_refused_where_nothing_fits() -> None:
    def planned(limit: int | None):
        return make_plan(MODEL, cluster_of(2), BATCH, COSTS, memory_limit=limit, recompute="auto")

    none, full = (make_plan(MODEL, cluster_of(2), BATCH, COSTS, recompute=own) for own in ("none", "full"))
    free = planned(None)
    assert (free.recomputed, free.stage_layers) == ("none", none.stage_layers)
    needed = [max(rank.peak_bytes for rank in own.ranks) for own in (full, none)]
    steps = []
    for limit in range(needed[0], needed[1] + 20, 20):
        plan = planned(limit)
        assert max(rank.peak_bytes for rank in plan.ranks) <= limit
        steps.append(plan.predicted.step_s)
    assert steps == sorted(steps, reverse=True), "more memory never takes longer"
    assert full.predicted.step_s >= steps[0] > steps[-1] == none.predicted.step_s
    assert len(set(steps)) > 3, "there is more between all and nothing"
    with pytest.raises(ImpossibleError, match="no plan fits"):
        planned(10)


def test_auto_keeps_a_given_split_and_goes_with_every_kind_of_schedule() -> None:
    given = make_plan(MODEL, cluster_of(2), BATCH, COSTS, memory_limit=400, recompute="auto", split=SPLIT)
    assert given.stage_layers == SPLIT
    assert given.recomputed == "selective"
    for schedule in ("auto", "zb-v", "interleaved", "zb-h1"):
        plan = make_plan(MODEL, cluster_of(2), BATCH, COSTS, schedule, memory_limit=600, recompute="auto")
        assert max(rank.peak_bytes for rank in plan.ranks) <= 600


def test_attention_that_is_not_there_is_not_recomputed() -> None:
    with pytest.raises(InputError, match="no attention is to be seen inside the blocks of made-up; --recompute full"):
        make_plan(
            model_of(4, recomputed_bytes=(1, 1)), cluster_of(2), BATCH, costs_of([1.0] * 4), recompute="selective"
        )
