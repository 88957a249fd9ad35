"""Why: a search cut short, in vain or over unequal devices must neither lose a plan nor promise too much."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from evenflow.cost.preset import PresetCosts
from evenflow.draw.html import _notes as page_notes
from evenflow.errors import ImpossibleError, InputError
from evenflow.files.cluster import load_cluster
from evenflow.plan import Plan
from evenflow.search import compare_schedules, reschedule
from evenflow.search.layouts import Layout, LayoutRequest, Pins, Space, plan_layout, planned
from evenflow.search.layouts.best_first import best_first
from evenflow.search.layouts.solve import Kind, Solver
from evenflow.spec import parse_cluster
from evenflow.spec.presets import PRESETS
from evenflow.spec.trainers import TRAINERS
from tests.search.test_layouts import DEVICE, SEQ, SMALL, request

LLAMA = PRESETS["llama-2-7b"]
GIB = 2**30


def llama(work: int, runners_up: int):
    own = Space(LLAMA, 16, 8, 64, 4096, TRAINERS["evenflow"])
    costs = PresetCosts(LLAMA, DEVICE, 4096, own.trainer)
    solver = Solver(costs, [Kind(16, 1.0, DEVICE.usable_bytes)], "auto")
    return best_first(own.layouts(), costs, solver, work=work, runners_up=runners_up)


@pytest.mark.parametrize("work", [1, 20_000])
def test_a_search_at_its_limit_of_work_keeps_the_best_that_it_solved(work: int) -> None:
    found = llama(work, runners_up=5)
    steps = [own.step_s for own in found.solved]
    assert not found.is_whole
    assert (found.best.step_s if found.best else None) == min(steps, default=None)
    assert steps == sorted(steps)
    assert found.bound_s <= min(steps, default=np.inf)


def test_runners_up_may_be_the_best_where_work_ended_the_search() -> None:
    own = Space(SMALL, 8, 8, 64, SEQ, TRAINERS["evenflow"])
    costs = PresetCosts(SMALL, DEVICE, SEQ, own.trainer)
    solver = Solver(costs, [Kind(8, 1.0, DEVICE.usable_bytes)], "auto")
    layouts = own.layouts()
    alone, more = (best_first(layouts, costs, solver, work=1, runners_up=count) for count in (0, 30))
    assert alone.best is not None
    assert more.best is not None
    assert more.best.step_s == min(own.step_s for own in more.solved)


def test_a_search_that_ended_early_tries_the_layouts_that_need_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "best_first", partial(best_first, work=1))
    plan = plan_layout(LayoutRequest(LLAMA, parse_cluster("2x8xA100-80GB"), 64, 4096))
    assert max(rank.peak_bytes for rank in plan.ranks) <= plan.memory_limit
    assert plan.bound.step_s < plan.predicted.step_s
    tight = LayoutRequest(LLAMA, parse_cluster("1x8xA100-80GB"), 64, 4096, memory_limit=6 * GIB)
    with pytest.raises(ImpossibleError, match="no plan"):
        plan_layout(tight)


def over_for(calls: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Has the first so many assembled plans hold more than they may; the bounds that plans were made with."""
    bounds: list[float] = []
    whole = planned.assemble

    def assemble(found, costs, cluster, batch, limit, bound_s, *rest) -> Plan:
        plan = whole(found, costs, cluster, batch, limit, bound_s, *rest)
        bounds.append(bound_s)
        if len(bounds) > calls:
            return plan
        return replace(plan, ranks=tuple(replace(own, peak_bytes=limit + GIB) for own in plan.ranks))

    monkeypatch.setattr(planned, "assemble", assemble)
    return bounds


def test_a_plan_whose_program_holds_too_much_is_never_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    over_for(99, monkeypatch)
    with pytest.raises(ImpossibleError, match=r"holds 1.00 GiB more on a rank than it may.*a memory limit of"):
        plan_layout(request())


def test_the_bound_is_of_the_memory_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = over_for(1, monkeypatch)
    plan = plan_layout(request(memory_limit=4 * GIB))
    assert bounds == [bounds[0]] * 2
    assert plan.bound.step_s == bounds[0]


TOML = """
[[nodes]]
count = {}
devices = {}
device = "{}"
"""


@pytest.mark.parametrize(
    ("nodes", "each", "device"), [(8, 1, "H100-80GB"), (1, 8, "H100-80GB"), (4, 2, "A100-80GB"), (2, 4, "GB200")]
)
def test_a_short_form_is_the_cluster_that_its_file_would_say(
    tmp_path: Path, nodes: int, each: int, device: str
) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(TOML.format(nodes, each, device))
    short, said = parse_cluster(f"{nodes}x{each}x{device}"), load_cluster(file)
    assert short.groups == said.groups
    pins = Pins(pp=2, tp=1)
    plans = [plan_layout(request(cluster=own, pins=pins)) for own in (short, said)]
    assert plans[0].predicted.step_s == plans[1].predicted.step_s


def test_nodes_of_one_device_are_slower_than_one_node() -> None:
    apart, together = (
        plan_layout(request(cluster=parse_cluster(text), pins=Pins(pp=1, dp=8)))
        for text in ("8x1xH100-80GB", "8xH100-80GB")
    )
    assert apart.predicted.step_s > together.predicted.step_s * 1.01


def test_the_nvlink_of_a_rack_joins_its_trays() -> None:
    assert parse_cluster("18x4xGB200").groups[0].accelerator.node_devices == 72
    assert parse_cluster("18x4xH100-80GB").groups[0].accelerator.node_devices == 4
    assert parse_cluster("64xH100-80GB").groups[0].accelerator.node_devices == 8, "nobody said one node of 64"


def test_nothing_is_warned_of_where_recomputation_is_fixed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for wish in ("none", "full"):
            plan_layout(LayoutRequest(LLAMA, parse_cluster("2x8xA100-80GB"), 64, 4096, recompute=wish))


def test_of_many_kinds_not_every_order_is_tried() -> None:
    costs = PresetCosts(SMALL, DEVICE, SEQ, TRAINERS["evenflow"])
    kinds = [Kind(1, 1 / (1 + number / 8), 1e12 * (number + 1)) for number in range(8)]
    solver = Solver(costs, kinds, "none")
    layout = Layout(8, 1, 1, 1, 1, 1, "1f1b", 1, 0, 8)
    assert len(list(solver.ranks(layout))) <= 4
    found = solver.solve(layout)
    assert not found.is_all
    assert found.bound_s == 0.0
    assert Solver(costs, kinds[:3], "none").solve(replace(layout, pp=3)).is_all


UNEQUAL = """
[[nodes]]
devices = 4
device = "A100-80GB"

[[nodes]]
devices = 4
device = "L4"
"""


def unequal(tmp_path: Path, text: str = UNEQUAL):
    file = tmp_path / "unequal.toml"
    file.write_text(text)
    return load_cluster(file)


def test_the_fastest_kind_is_that_which_computes_a_block_the_fastest(tmp_path: Path) -> None:
    """Not that of the highest peak, where its memory is slow."""
    cluster = unequal(
        tmp_path,
        UNEQUAL.replace("L4", "slow")
        + """
[devices.slow]
like = "A100-80GB"
half_tflops = 320
memory_gbytes_per_s = 20
""",
    )
    asked = LayoutRequest(SMALL, cluster, 32, SEQ)
    costs, kinds = planned._kinds(asked, TRAINERS["evenflow"])
    assert costs.device.name == "A100-80GB"
    assert kinds[0].speed == 1.0
    assert kinds[1].speed < 1.0


def test_the_closest_of_unequal_devices_is_named_with_its_own_memory(tmp_path: Path) -> None:
    with pytest.raises(ImpossibleError) as refused:
        plan_layout(LayoutRequest(PRESETS["llama-2-70b"], unequal(tmp_path), 32, 4096, pins=Pins(pp=8, tp=1)))
    said = str(refused.value)
    assert "a memory limit of" not in said, "no limit gives a device more than it has"
    needs, _, has = said.partition("needing ")[2].partition(", ")[0].partition(" of ")
    assert has in ("67.3 GiB", "19.0 GiB")
    assert float(needs.split()[0]) > float(has.split()[0])


def test_limits_above_the_devices_memory_are_neither_taken_nor_advised() -> None:
    with pytest.raises(InputError, match=r"--memory-limit 500 GiB is more than the 22.4 GiB that the largest device"):
        plan_layout(request(cluster=parse_cluster("1xL4"), memory_limit=500 * GIB))
    with pytest.raises(ImpossibleError) as refused:
        plan_layout(LayoutRequest(LLAMA, parse_cluster("1xL4"), 8, 2048))
    assert "memory limit of" not in str(refused.value)


def test_auto_has_no_tp_and_says_what_was_made() -> None:
    with pytest.raises(InputError, match=r"--tp 4 they are made together .* or --tp 1"):
        plan_layout(request(pins=Pins(schedule="auto", tp=4)))
    plan = plan_layout(request(pins=Pins(schedule="auto")))
    assert (plan.schedule, plan.axes.tp) == ("auto", 1)
    assert plan.bound.gap >= 0
    assert not any("--tp" in note for note in plan.notes)
    busiest = max(own.busy_s for own in plan.ranks) / plan.predicted.step_s
    assert any(f"exchanges {100 * busiest:.1f}%" in note for note in plan.notes)


@pytest.fixture(scope="module")
def trainer_plan() -> Plan:
    """A preset's plan in a space without halves."""
    return plan_layout(request(trainer="deepspeed", pins=Pins(pp=4, tp=1)))


def test_a_preset_under_another_schedule_is_not_below_its_bound(trainer_plan: Plan) -> None:
    for schedule in ("zb-h1", "zb-h2", "gpipe"):
        assert reschedule(trainer_plan, schedule).bound.gap >= 0


def test_pages_say_what_the_bound_of_a_preset_holds_for(trainer_plan: Plan) -> None:
    assert "and every schedule" in page_notes(trainer_plan)
    said = page_notes(replace(trainer_plan, source="llama-2-7b"))
    assert "every schedule" not in said
    assert "layout that was searched" in said


def test_a_schedule_that_one_rank_cannot_hold_is_refused_and_listed_so(tmp_path: Path) -> None:
    plan = plan_layout(request(cluster=unequal(tmp_path), pins=Pins(pp=2, tp=4, schedule="1f1b")))
    assert plan.memory_limits is not None
    tight = replace(plan, memory_limits=tuple(own.peak_bytes for own in plan.ranks))
    with pytest.raises(ImpossibleError, match=r"under gpipe rank \d would need .* more than there is; 1f1b fits"):
        reschedule(tight, "gpipe")
    rows = {own.schedule: own for own in compare_schedules(tight)}
    assert rows["gpipe"].plan is None
    assert "would need" in rows["gpipe"].reason


@pytest.mark.parametrize(
    ("model", "trainer", "pins", "said"),
    [
        ("llama-2-7b", "evenflow", Pins(tp=8, schedule="zb-h1"), "under --tp 8 they are made together"),
        (
            "llama-2-7b", "evenflow", Pins(stages_per_rank=2, schedule="1f1b"),
            "--stages-per-rank 2: 1F1B has 1 on each rank; 1 would do",
        ),
        ("mixtral-8x7b", "megatron", Pins(ep=8, dp=1, cp=1), "--ep 8 shares out experts over dp x cp, which is 1"),
    ],
)  # fmt: skip
def test_fixed_axes_that_do_not_go_together_are_named(model: str, trainer: str, pins: Pins, said: str) -> None:
    with pytest.raises(InputError) as refused:
        plan_layout(LayoutRequest(PRESETS[model], parse_cluster("8xA100-80GB"), 64, 2048, trainer, pins))
    assert said in str(refused.value)
    assert "of them would do" not in str(refused.value)


def test_devices_are_advised_only_where_a_layout_uses_them() -> None:
    """Megatron's interleaved microbatches come in groups of pp, and here there is one microbatch."""
    pins = Pins(tp=1, cp=1, schedule="interleaved", micro_batch_size=32)
    with pytest.raises(InputError, match=r"uses all 8 devices .*; 1 of them would do"):
        plan_layout(request(trainer="megatron", pins=pins))
