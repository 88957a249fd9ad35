"""Why: a search that calls its plan the best must be right about every bound, every step and every byte it counts."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from random import Random

import numpy as np
import pytest

from evenflow.cost.preset import PresetCosts
from evenflow.errors import ImpossibleError, InputError
from evenflow.plan import Search
from evenflow.program import compute_order, verify_plan
from evenflow.search import plan_timeline
from evenflow.search.hardware import plan_hardware
from evenflow.search.layouts import Layout, LayoutRequest, Pins, Space, plan_layout
from evenflow.search.layouts.assemble import assemble
from evenflow.search.layouts.best_first import best_first
from evenflow.search.layouts.bounds import columns, lower_bounds
from evenflow.search.layouts.layout import stage_ranks
from evenflow.search.layouts.orders import order_arrays
from evenflow.search.layouts.solve import Kind, Solver
from evenflow.search.layouts.stages import places
from evenflow.spec import Batch, parse_cluster
from evenflow.spec.accelerators import ACCELERATORS
from evenflow.spec.architecture import Architecture, Experts
from evenflow.spec.presets import PRESETS
from evenflow.spec.trainers import TRAINERS
from tests.search.exhaustive import best_by_trying_everything

TIED_SEEDS = range(12, 18)
SMALL = Architecture("small", "test", 6, 2048, 8192, 16, 8, 128, 32000)
DEVICE = ACCELERATORS["A100-80GB"]
SEQ = 2048
# In nodes of eight, of three, and of two that are joined by more than their devices are.
IN_NODES = (DEVICE, replace(DEVICE, node_devices=3), replace(DEVICE, node_devices=2, node_bytes_per_s=15e9))


def space(random: Random, architecture: Architecture = SMALL, trainer: str | None = None) -> Space:
    """A small space at random."""
    name = trainer or random.choice(list(TRAINERS))
    return Space(architecture, random.choice([2, 4, 8]), 8, random.choice([4, 8, 12]), SEQ, TRAINERS[name])


def caps(costs: PresetCosts, random: Random) -> float:
    """From what hardly fits to what always does."""
    state = costs.step_figures(next(iter([Layout(1, 1, 1, 1, 1, 1, "1f1b", 1, 0, 1).shape])), 1, 0).state_bytes.sum()
    return float(state * random.choice([0.15, 0.3, 0.6, 1.2, 5.0]))


@pytest.mark.parametrize("seed", range(18))
def test_a_step_is_the_simulators_and_no_rank_holds_more_than_was_allowed_for(seed: int) -> None:
    random = Random(seed)
    small = replace(SMALL, tied=seed in TIED_SEEDS)
    own = space(random, small)
    costs = PresetCosts(small, IN_NODES[seed % 3], SEQ, own.trainer)
    solver = Solver(costs, [Kind(1, 1.0, caps(costs, random))], random.choice(["auto", "auto", "none", "full"]))
    for layout in random.sample(all_of := own.layouts(), min(len(all_of), 6)):
        found = solver.solve(layout)
        if not np.isfinite(found.step_s):
            continue
        batch = Batch(own.global_batch_size, layout.micro_batch_size, SEQ, layout.dp)
        plan = assemble(
            found, costs, parse_cluster(f"{own.devices}xA100-80GB"), batch, int(solver.cap), found.step_s,
            Search(1, 0.0), (),
        )  # fmt: skip
        hardware = plan_hardware(plan)
        tied_s = sum(hardware.reduce_tied_s or ())  # which the search leaves out
        assert (tied_s > 0) == (small.tied and plan.stage_rank[0] != plan.stage_rank[-1])
        tied_s += hardware.reduce_grad_s[-1] if tied_s and hardware.reduce_grad_s else 0.0  # in a program, after it
        assert found.step_s * 0.998 <= plan.predicted.step_s <= (found.step_s + tied_s) * 1.002, layout
        for rank, peak in zip(plan.ranks, found.rank_peaks, strict=True):
            assert rank.peak_bytes <= peak, (layout, rank.rank)
        verify_plan(plan)
        assert sorted(layer for stage in plan.stages for layer in stage.layers) == list(range(SMALL.layers + 2))
        assert plan.recompute == found.modes


def test_a_plan_says_where_the_rate_of_its_link_is_from() -> None:
    """What nodes are joined by is never the device's to say, so of a network the catalogue's rate is assumed."""
    found = {}
    for cluster in ("8xA100-80GB", "8x1xA100-80GB"):
        pins = Pins(pp=8, micro_batch_size=1, schedule="1f1b")
        found[cluster] = plan_layout(LayoutRequest(SMALL, parse_cluster(cluster), 8, SEQ, pins=pins)).costs
    assert {own["link"] for own in found.values()} == {"analytic", "assumed"}
    assert found["8x1xA100-80GB"]["link"] == "assumed"
    assert {own["layers"] for own in found.values()} == {"analytic"}


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb-v"])
@pytest.mark.parametrize(("cluster", "far"), [("2x4xA100-80GB", 1), ("4x2xA100-80GB", 3), ("8xA100-80GB", 0)])
def test_a_plan_waits_for_the_network_where_its_pipeline_leaves_a_node(cluster: str, far: int, schedule: str) -> None:
    """Four ranks of two devices each."""
    pins = Pins(pp=4, tp=1, dp=2, cp=1, micro_batch_size=1, schedule=schedule)
    whole, eight = parse_cluster(cluster), replace(SMALL, layers=8)
    plan = plan_layout(LayoutRequest(eight, whole, 16, SEQ, pins=pins))
    fabric = PresetCosts(eight, whole.groups[0].accelerator, SEQ, TRAINERS["evenflow"]).fabric
    edges = [plan.links.cost((rank, rank + 1)) for rank in range(3)]
    assert (edges.count(fabric.network), edges.count(fabric.node)) == (far, 3 - far)
    assert plan_timeline(plan).step_s == plan.predicted.step_s
    if far:
        in_one = replace(plan, link=fabric.node, network=None)
        assert plan_timeline(in_one).step_s < plan.predicted.step_s or schedule == "zb-v"  # which may hide it


def test_a_tied_table_is_held_once_by_a_rank_that_has_both_ends() -> None:
    tied = replace(SMALL, tied=True)
    state = {}
    for pp in (1, 2):
        pins = Pins(pp=pp, tp=1, dp=1, cp=1, micro_batch_size=1, schedule="1f1b", zero=0)
        plan = plan_layout(LayoutRequest(tied, parse_cluster(f"{pp}xA100-80GB"), 4, SEQ, pins=pins))
        table = 2 * tied.vocab * tied.hidden
        assert plan.tied_bytes == table
        assert sum(stage.memory.parameter_bytes for stage in plan.stages) == 2 * tied.parameters + (pp - 1) * table
        state[pp] = sum(stage.memory.state_bytes for stage in plan.stages)
    assert state[1] == 18 * tied.parameters
    assert state[2] == 18 * tied.parameters + 9 * table


@pytest.mark.parametrize("seed", [*range(10), *TIED_SEEDS])
def test_no_layout_is_faster_than_its_bound(seed: int) -> None:
    random = Random(seed)
    small = replace(SMALL, tied=seed in TIED_SEEDS)
    own = space(random, small)
    costs = PresetCosts(small, IN_NODES[seed % 3], SEQ, own.trainer)
    solver = Solver(costs, [Kind(1, 1.0, caps(costs, random))], random.choice(["auto", "auto", "selective", "full"]))
    layouts = own.layouts()
    layouts = random.sample(layouts, min(len(layouts), 25))
    table = columns(layouts, costs, solver.cap, solver.wish)
    for layout, bound, rough in zip(layouts, lower_bounds(table), lower_bounds(table, with_memory=False), strict=True):
        found = solver.solve(layout)
        assert found.is_all or layout.stages > 6
        assert rough <= bound * (1 + 1e-6), "both are found by bisection"
        assert bound <= found.step_s, layout


@pytest.mark.parametrize("slow", ["network_bytes_per_s", "node_bytes_per_s"])
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "interleaved"])
def test_where_edges_differ_a_bound_takes_the_quickest(schedule: str, slow: str) -> None:
    """Of the three edges of four ranks one leaves its node, or two stay in theirs, and transfers there take longest."""
    device = replace(DEVICE, node_devices=2, **{slow: 1e9})
    costs = PresetCosts(SMALL, device, SEQ, TRAINERS["evenflow"])
    solver = Solver(costs, [Kind(4, 1.0, 1e15)], "none")
    layout = Layout(4, 1, 1, 1, 1, 2 if schedule == "interleaved" else 1, schedule, 1, 0, 4)
    found = solver.solve(layout)
    assert found.is_all
    assert lower_bounds(columns([layout], costs, solver.cap, solver.wish))[0] <= found.step_s


@pytest.mark.parametrize(("m", "size"), [(4, 1), (4, 2), (8, 1)])
def test_gpipe_of_several_stages_a_rank_is_no_faster_than_its_bound(m: int, size: int) -> None:
    """Its forwards and backwards lie far apart, so a rank's path does not hold both of the first microbatch's."""
    eight = replace(PRESETS["gpt3-175b"], layers=8)
    costs = PresetCosts(eight, DEVICE, SEQ, TRAINERS["evenflow"])
    solver = Solver(costs, [Kind(4, 1.0, 1e15)], "none")
    layout = Layout(4, 1, 1, 1, 1, 2, "gpipe", size, 0, m)
    found = solver.solve(layout)
    assert found.is_all
    assert lower_bounds(columns([layout], costs, solver.cap, solver.wish))[0] <= found.step_s


def test_of_halves_the_last_update_may_be_that_of_the_lightest_layer() -> None:
    """A rank of blocks alone may be the last under zb-h1, so the embedding's update may come in beside others' work."""
    wide = replace(SMALL, vocab=512_000)
    costs = PresetCosts(wide, DEVICE, SEQ, TRAINERS["evenflow"])
    halved, whole = (Layout(2, 1, 1, 1, 1, 1, schedule, 1, 0, 8) for schedule in ("zb-h1", "1f1b"))
    table = columns([halved, whole], costs, 1e15, "none")
    update = costs.step_figures(halved.shape, 1, 0)
    every = update.reduce_s + update.optimizer_s
    last = lower_bounds(table) - lower_bounds(replace(table, first_update=0 * table.p, least_update=0 * table.p))
    assert last == pytest.approx([every.min(), every[0]], rel=1e-3)


@pytest.mark.parametrize(
    ("seed", "trainer"),
    [*((seed, "evenflow") for seed in range(6)),
     *((seed, trainer) for seed in range(3) for trainer in ("megatron", "torchtitan", "deepspeed"))],
)  # fmt: skip
def test_the_best_is_that_of_trying_everything(seed: int, trainer: str) -> None:
    random = Random(100 + seed)
    tiny = replace(SMALL, layers=3, vocab=random.choice([8000, 128000]))
    own = replace(space(random, tiny, trainer), devices=random.choice([2, 3]), global_batch_size=4)
    own = replace(own, pins=Pins(micro_batch_size=random.choice([1, 2]), zero=0))
    costs = PresetCosts(tiny, DEVICE, SEQ, own.trainer)
    cap = caps(costs, random)
    try:
        layouts = own.layouts()
    except InputError:
        return
    best = best_first(layouts, costs, Solver(costs, [Kind(1, 1.0, cap)], "auto")).best
    everything = best_by_trying_everything(layouts, costs, cap)
    assert (best.step_s if best else np.inf) == pytest.approx(everything, rel=1e-9)


def test_a_search_looks_no_further_than_it_has_to_and_says_how_good_it_is() -> None:
    own = Space(SMALL, 8, 8, 64, SEQ, TRAINERS["evenflow"])
    costs = PresetCosts(SMALL, DEVICE, SEQ, own.trainer)
    layouts = own.layouts()
    solver = Solver(costs, [Kind(1, 1.0, DEVICE.usable_bytes)], "auto")
    found = best_first(layouts, costs, solver)
    assert found.best is not None
    assert found.is_whole
    assert found.bound_s == found.best.step_s
    assert len(found.solved) < len(layouts)
    hurried = best_first(layouts, costs, solver, work=1)
    assert hurried.best is not None
    assert not hurried.is_whole
    assert hurried.bound_s < hurried.best.step_s


@pytest.mark.parametrize("name", ["1f1b", "gpipe", "interleaved", "zb-h1", "zb-h2", "zb-v"])
@pytest.mark.parametrize(("ranks", "m"), [(2, 3), (4, 4), (4, 11)])
def test_orders_are_those_of_the_schedules(name: str, ranks: int, m: int) -> None:
    """The quick ones made of numbers too; a rank's counts are what a walk over its actions counts."""
    each = 2 if name in ("interleaved", "zb-v") else 1
    arrays = order_arrays(name, ranks, each, m)
    order = compute_order(name, stage_ranks(name, ranks, each), m)
    for rank, actions in enumerate(order):
        costs = [arrays.cost[node] for node in _rank_nodes(arrays, rank)]
        kinds = ["Forward", "Backward", "InputBackward", "WeightBackward"]
        assert [(kinds[c // arrays.stages], c % arrays.stages) for c in costs] == [
            (type(own).__name__, own.stage) for own in actions
        ]
        flight = most = 0
        for own in actions:
            flight += {"Forward": 1, "Backward": -1, "InputBackward": -1}.get(type(own).__name__, 0)
            most = max(most, flight)
        assert arrays.counts[rank].saved.sum(axis=1).max() >= most


def _rank_nodes(arrays, rank):
    nodes = []
    at = int(arrays.ends[rank])
    while at >= arrays.ranks:
        nodes.append(at)
        at = int(arrays.before[at])
    return nodes[::-1]


def test_every_layer_is_in_one_stage_in_order() -> None:
    arrays = order_arrays("interleaved", 2, 2, 4)
    begin, end = places(arrays, np.array([[0, 2, 4, 6, 8]]))
    assert begin.tolist() == [[[0, 4], [2, 6]]]
    assert end.tolist() == [[[2, 6], [4, 8]]]


def request(**changes) -> LayoutRequest:
    """A plan that takes no time."""
    base = LayoutRequest(SMALL, parse_cluster("8xA100-80GB"), 32, SEQ)
    return replace(base, **changes)


def test_experts_and_sequences_are_shared_out_for_trainers_that_can() -> None:
    mixture = replace(SMALL, experts=Experts(8, 2, 2048))
    plan = plan_layout(request(architecture=mixture, trainer="megatron", pins=Pins(ep=4, cp=2)))
    assert (plan.axes.ep, plan.axes.cp, plan.trainer) == (4, 2, "megatron")
    assert plan.axes.processes == 8
    with pytest.raises(InputError, match="--ep 4: evenflow has no ep; 1, or --for megatron, torchtitan"):
        plan_layout(request(architecture=mixture, pins=Pins(ep=4)))


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        (Pins(tp=3), "--tp 3 does not divide the query heads of small, 16; 2 or 4 would do"),
        (Pins(dp=5), "--dp 5 does not divide a global batch of 32; 4 or 8 would do"),
        (Pins(pp=9), "--pp 9 is more than the 8 layers there are; 8 would be the most"),
        (Pins(pp=4, tp=4), "--pp 4 --tp 4 needs 16 devices, and there are 8"),
        (Pins(micro_batch_size=5), "--micro-batch-size 5 does not divide the 32 sequences"),
        (Pins(schedule="2f2b"), "schedule '2f2b' is not known"),
        (Pins(pp=3), "no layout of small uses all 8 devices"),
    ],
)
def test_pins_that_no_layout_has_are_refused(pins: Pins, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_layout(request(pins=pins))


def test_where_nothing_fits_the_closest_is_named_and_what_it_lacks() -> None:
    with pytest.raises(ImpossibleError, match=r"no plan fits: of \d+ layouts the closest .* of 100 MiB, .* more than"):
        plan_layout(request(memory_limit=100 * 2**20))


def test_a_fixed_axis_stays_and_costs() -> None:
    free, fixed = plan_layout(request()), plan_layout(request(pins=Pins(pp=4, schedule="gpipe")))
    assert (fixed.axes.pp, fixed.schedule) == (4, "gpipe")
    assert fixed.predicted.step_s >= free.predicted.step_s


def test_auto_is_no_slower_than_the_named_schedule_that_it_starts_from() -> None:
    named, made = (
        plan_layout(request(pins=Pins(tp=1, pp=4))),
        plan_layout(request(pins=Pins(tp=1, pp=4, schedule="auto"))),
    )
    assert made.schedule == "auto"
    assert made.predicted.step_s <= named.predicted.step_s * (1 + 1e-9)


def test_splits_are_all_looked_at_where_they_are_few() -> None:
    costs = PresetCosts(SMALL, DEVICE, SEQ, TRAINERS["evenflow"])
    solver = Solver(costs, [Kind(1, 1.0, 1e12)], "none")
    layout = Layout(3, 1, 1, 1, 1, 1, "1f1b", 1, 0, 6)
    found = solver.solve(layout)
    ways = [solver.of_split(layout, (0, *cuts, 8)).step_s for cuts in combinations(range(1, 8), 2)]
    assert found.is_all
    assert found.step_s == min(ways)
