"""Why: a plan that was made for a trainer and cannot be handed to it was made for nobody."""

from __future__ import annotations

import numpy as np
import pytest

from evenflow.cost.preset import PresetCosts
from evenflow.errors import InputError
from evenflow.export import export_plan
from evenflow.search.layouts import Layout, LayoutRequest, Pins, plan_layout
from evenflow.search.layouts.bounds import columns, lower_bounds
from evenflow.search.layouts.solve import Kind, Solver
from evenflow.spec import parse_cluster
from evenflow.spec.presets import PRESETS
from evenflow.spec.trainers import TRAINERS
from tests.search.test_layouts import DEVICE, SEQ, SMALL

GIB = 2**30
# Where not everything fits, so that some blocks run again: free, and pinned to a pipeline, which makes blocks unequal.
TIGHT = {
    "free": LayoutRequest(PRESETS["llama-2-7b"], parse_cluster("1x8xA100-40GB"), 32, 4096),
    "pipeline": LayoutRequest(
        PRESETS["llama-2-7b"], parse_cluster("1x8xA100-40GB"), 32, 4096, pins=Pins(pp=8, micro_batch_size=1)
    ),
    "small": LayoutRequest(
        PRESETS["llama-2-13b"],
        parse_cluster("2x8xA100-40GB"),
        64,
        4096,
        pins=Pins(pp=8, tp=1, cp=1),
        memory_limit=24 * GIB,
    ),
}


@pytest.mark.parametrize("trainer", ["megatron", "torchtitan", "deepspeed"])
@pytest.mark.parametrize("case", list(TIGHT))
def test_a_plan_for_a_trainer_is_exported_to_it(case: str, trainer: str) -> None:
    asked = TIGHT[case]
    plan = plan_layout(
        LayoutRequest(
            asked.architecture, asked.cluster, asked.global_batch_size, asked.seq_length, trainer, asked.pins,
            memory_limit=asked.memory_limit,
        )
    )  # fmt: skip
    assert set(plan.recompute) != {"none"} or case == "free", "else it shows nothing"
    assert export_plan(plan, trainer).files


@pytest.mark.parametrize("trainer", ["megatron", "torchtitan", "deepspeed"])
def test_what_a_trainer_may_recompute_is_under_its_bound_no_slower_than_one_way_for_all(trainer: str) -> None:
    costs = PresetCosts(SMALL, DEVICE, SEQ, TRAINERS[trainer])
    layout = Layout(4, 1, 1, 1, 1, 1, "1f1b", 1, 0, 8)
    figures, step = costs.figures(layout.shape), costs.step_figures(layout.shape, 1, 0)
    state, saved = float(step.state_bytes.sum()) / 4, float(figures.saved_bytes[0].sum())
    for share in np.linspace(0.3, 1.3, 6).tolist():
        kinds = [Kind(4, 1.0, state * 1.6 + saved * share)]
        own, mixed = Solver(costs, kinds, "auto"), Solver(costs, kinds, "auto")
        mixed.ways = ("auto",)
        found, best = own.solve(layout), mixed.solve(layout).step_s
        for wish in ("none", "full"):
            assert found.step_s <= Solver(costs, kinds, wish).solve(layout).step_s
        assert best <= found.step_s
        assert lower_bounds(columns([layout], costs, own.cap, "auto"))[0] <= found.step_s


def test_deepspeed_has_no_part_of_a_block_to_recompute() -> None:
    with pytest.raises(InputError, match="deepspeed does not recompute blocks in part; --recompute auto"):
        plan_layout(LayoutRequest(SMALL, parse_cluster("8xA100-80GB"), 32, SEQ, "deepspeed", recompute="selective"))
