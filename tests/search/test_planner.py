"""Why: the plan is what people came for: it is held against every split, and its refusals must help."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from evenflow.cost import LinkCost, MemoryModel
from evenflow.errors import ImpossibleError, InputError, ProgramError
from evenflow.files import load_plan, save_plan
from evenflow.plan import Axes, step_bound
from evenflow.program import build_program, place
from evenflow.search import (
    compare_schedules,
    equal_split,
    make_plan,
    plan_program,
    plan_timeline,
    reschedule,
    try_split,
)
from evenflow.spec import Batch
from evenflow.units import parse_bytes
from tests.property.cases import all_splits, cluster_of, costs_of, model_of, random_costs, random_model
from tests.search.random_cases import ONE_STAGE, random_case
from tests.sweeps import some_of, sweep


@sweep(range(300), 11)
def test_is_within_a_percent_of_the_best_split_there_is(seeds):
    worse = {}
    for seed in seeds:
        _, layers, stages, microbatches, costs, model, schedule = random_case(seed)
        plan = make_plan(model, cluster_of(stages), Batch(microbatches, 1, 16), costs, schedule)
        program, memory = build_program(schedule, stages, microbatches), MemoryModel(model)
        best = min(try_split(split, program, costs, memory).step_s for split in all_splits(layers, stages))
        if plan.predicted.step_s > best * (1 + 1e-6):
            worse[seed] = plan.predicted.step_s / best
    assert max(worse.values(), default=1.0) <= 1.01, f"{len(worse)} of {len(seeds)}: {worse}"
    assert len(worse) <= len(seeds) / 20


@sweep(range(5000, 5300), 11)
def test_a_limit_that_some_split_meets_is_met(seeds):
    """Limits at or near the least peak of all splits, where nearly every split is refused."""
    refused, worse = [], {}
    for seed in seeds:
        random, layers, stages, microbatches, costs, model, schedule = random_case(seed)
        program, memory = build_program(schedule, stages, microbatches), MemoryModel(model)
        every = [try_split(split, program, costs, memory) for split in all_splits(layers, stages)]
        limit = sorted(own.peak_bytes for own in every)[random.choice([0, 0, 1, 2]) % len(every)]
        try:
            plan = make_plan(model, cluster_of(stages), Batch(microbatches, 1, 16), costs, schedule, limit)
        except ImpossibleError:
            refused.append(seed)
            continue
        assert max(rank.peak_bytes for rank in plan.ranks) <= limit
        best = min(own.step_s for own in every if own.peak_bytes <= limit)
        if plan.predicted.step_s > best * 1.01:
            worse[seed] = plan.predicted.step_s / best
    assert not refused
    assert max(worse.values(), default=1.0) < 1.05, worse


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb-v", "auto"])
def test_a_process_own_memory_is_counted_once_on_each_rank(schedule, tmp_path):
    """Whatever number of stages a rank has; under a limit, under another schedule and read back, too."""
    random = Random(3)
    own, model = 10_000, random_model(random, 8)
    costs = random_costs(random, 8)
    beside = replace(costs, process_bytes=own)
    bare = make_plan(model, cluster_of(2), Batch(4, 1, 16), costs, schedule)
    plan = make_plan(model, cluster_of(2), Batch(4, 1, 16), beside, schedule, split=bare.stage_layers)
    assert [rank.peak_bytes - own for rank in plan.ranks] == [rank.peak_bytes for rank in bare.ranks]
    timelines = plan_timeline(plan), plan_timeline(bare)
    assert all(
        [one - own for one in mine.memory] == list(other.memory)
        for mine, other in zip(timelines[0].ranks, timelines[1].ranks, strict=True)
    )
    other = reschedule(plan, "gpipe"), reschedule(bare, "gpipe")
    assert [rank.peak_bytes - own for rank in other[0].ranks] == [rank.peak_bytes for rank in other[1].ranks]
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    fullest = max(rank.peak_bytes for rank in bare.ranks)
    assert make_plan(model, cluster_of(2), Batch(4, 1, 16), costs, schedule, fullest, split=bare.stage_layers)
    if schedule != "auto":  # which would take another order
        with pytest.raises((ImpossibleError, ProgramError)):
            make_plan(model, cluster_of(2), Batch(4, 1, 16), beside, schedule, fullest, split=bare.stage_layers)


@pytest.mark.parametrize("recompute", ["none", "auto"])
def test_a_limit_holds_with_a_process_own_memory(recompute):
    random = Random(5)
    model, costs = random_model(random, 8), random_costs(random, 8)
    bare = make_plan(model, cluster_of(2), Batch(8, 1, 16), costs, "1f1b")
    limit = max(rank.peak_bytes for rank in bare.ranks) + 500
    plan = make_plan(
        model, cluster_of(2), Batch(8, 1, 16), replace(costs, process_bytes=500), "1f1b", limit, recompute=recompute
    )
    assert max(rank.peak_bytes for rank in plan.ranks) <= limit
    assert plan.stage_layers == bare.stage_layers
    assert set(plan.recompute) == {"none"}


def test_a_plan_says_what_its_simulation_says():
    _, layers, stages, microbatches, costs, model, schedule = random_case(11)
    costs = replace(costs, stage_forward_s=0.01, stage_backward_s=0.02)
    plan = make_plan(model, cluster_of(stages), Batch(2 * microbatches, 2, 16), costs, schedule)
    own = try_split(plan.stage_layers, plan_program(plan), costs, MemoryModel(model))
    assert plan.predicted.step_s == own.step_s
    assert plan.predicted.idle_fraction == own.timeline.idle_fraction
    assert plan.predicted.imbalance == own.timeline.imbalance
    assert plan.predicted.tokens_per_s == pytest.approx(2 * microbatches * 16 / own.step_s)
    assert plan.predicted.mfu == pytest.approx(model.flops * microbatches / (stages * own.step_s * 1e9))
    assert plan.bound.step_s == step_bound(costs, stages, microbatches)
    assert plan.bound.gap == pytest.approx(own.step_s / plan.bound.step_s - 1)
    assert plan.bound.gap >= 0
    assert [rank.busy_s for rank in plan.ranks] == [rank.busy_s for rank in own.timeline.ranks]
    assert [layer for layers in plan.stage_layers for layer in layers] == list(range(layers))
    assert plan.stage_rank == tuple(range(stages))
    assert plan.global_batch_size == 2 * microbatches
    assert (plan.micro_batch_size, plan.microbatches, plan.seq_length) == (2, microbatches, 16)
    assert plan.fingerprint == model.fingerprint
    assert plan.search.considered >= 1


@pytest.mark.parametrize(("schedule", "placement"), [("interleaved", "loop"), ("zb-v", "v")])
def test_stages_of_several_a_rank_are_split_well(schedule, placement):
    """Against every split of small models over two ranks of two stages."""
    worse = []
    for seed in range(40):
        random = Random(seed)
        layers = random.randint(4, 8)
        costs, model = random_costs(random, layers), random_model(random, layers)
        plan = make_plan(model, cluster_of(2), Batch(4, 1, 16), costs, schedule)
        assert plan.stage_rank == place(placement, 2, 4)
        program, memory = build_program(schedule, 2, 4), MemoryModel(model)
        best = min(try_split(split, program, costs, memory).step_s for split in all_splits(layers, 4))
        worse.append(plan.predicted.step_s / best)
    assert max(worse) <= 1.02
    assert sum(own > 1 + 1e-6 for own in worse) <= 4


def test_a_given_split_is_taken_as_it_is():
    costs, model = costs_of([1.0] * 6), model_of(6)
    plan = make_plan(model, cluster_of(2), Batch(4, 1, 16), costs, split=((0,), (1, 2, 3, 4, 5)))
    assert plan.stage_layers == ((0,), (1, 2, 3, 4, 5))
    assert plan.search.considered == 1


def test_a_heavy_head_is_given_fewer_blocks():
    plan = make_plan(model_of(10), cluster_of(2), Batch(16, 1, 16), costs_of([0.1, *[1.0] * 8, 3.0]))
    first, last = plan.stage_layers
    assert len(first) > len(last)
    assert plan.predicted.imbalance < 1.15
    assert plan.notes == ("the head is worth 3.0 blocks",)


def test_a_head_too_heavy_for_any_split_is_said_with_its_figure_and_what_would_help():
    """The head is 12 of 20.1 seconds: 59.7% of the work, 2.39 times a quarter; one process would do."""
    plan = make_plan(model_of(10), cluster_of(4), Batch(16, 1, 16), costs_of([0.1, *[1.0] * 8, 12.0]))
    assert plan.notes[0] == (
        "the head alone is 59.7% of the work, more than an equal share over 4 ranks (25.0%): at best the "
        "busiest rank works 2.39 times the mean. What would help: 1 rank instead of 4, more or "
        "wider blocks, or a smaller vocabulary"
    )
    assert plan.predicted.imbalance >= 2.38
    three = make_plan(model_of(10), cluster_of(4), Batch(16, 1, 16), costs_of([0.1, *[1.0] * 8, 3.9]))
    assert "What would help: 3 ranks instead of 4" in three.notes[0]
    assert make_plan(model_of(6), cluster_of(2), Batch(4, 1, 16), costs_of([1.0] * 6)).notes == ()


def test_memory_that_nothing_fits_names_stage_need_and_limit_and_what_would_fit():
    model = model_of(6, parameter_bytes=[2**20] * 6)
    costs = costs_of([1.0] * 6)
    with pytest.raises(ImpossibleError) as caught:
        make_plan(model, cluster_of(2), Batch(4, 1, 16), costs, memory_limit=10 * 2**20)
    message = str(caught.value)
    assert message.startswith("no plan fits: the closest has stage ")
    assert "(layers 0 to 2) needing 12.0 MiB of 10.0 MiB" in message
    assert "a memory limit of 12.1 MiB would fit" in message
    assert caught.value.exit_code == 4
    with pytest.raises(ImpossibleError, match=r"needing 12.0 MiB of 10.0 MiB"):
        make_plan(model, cluster_of(2, memory_bytes=10 * 2**20), Batch(4, 1, 16), costs)


def test_the_limit_that_auto_names_where_nothing_fits_works_below_what_1f1b_needs():
    model = model_of(8, parameter_bytes=[300] * 8, saved_bytes=[5000, *[9000] * 6, 2000], output_bytes=500)
    request = model, cluster_of(4), Batch(8, 1, 16), costs_of([1.0] * 8)
    usual = max(rank.peak_bytes for rank in make_plan(*request).ranks)
    with pytest.raises(ImpossibleError, match=r"no schedule fits: .* in flight; a memory limit of") as caught:
        make_plan(*request, schedule="auto", memory_limit=10_000)
    limit = parse_bytes(str(caught.value).split("a memory limit of ")[1].split(" would fit")[0])
    assert limit < usual / 2
    plan = make_plan(*request, schedule="auto", memory_limit=limit)
    assert max(rank.peak_bytes for rank in plan.ranks) <= limit
    with pytest.raises(ImpossibleError):
        make_plan(*request, schedule="auto", memory_limit=int(limit * 0.98))


def test_a_limit_is_met_exactly_or_not_at_all():
    model, costs, batch = model_of(6, parameter_bytes=[2**20] * 6), costs_of([1.0] * 6), Batch(4, 1, 16)
    peak = make_plan(model, cluster_of(1), batch, costs).ranks[0].peak_bytes
    assert peak == 24 * 2**20
    make_plan(model, cluster_of(1), batch, costs, memory_limit=peak)
    with pytest.raises(ImpossibleError, match=r"stage 0 \(layers 0 to 5\)"):
        make_plan(model, cluster_of(1), batch, costs, memory_limit=peak - 1)


def test_recomputing_is_planned_for_in_time_and_memory_and_is_no_model_flops():
    model = model_of(6, saved_bytes=[0, *[100] * 4, 0], recomputed_bytes=(10, 90))
    costs, batch = costs_of([1.0] * 6, recompute=[0.0, *[1.0] * 4, 0.0]), Batch(4, 1, 16)
    none, full = (
        make_plan(model, cluster_of(2), batch, costs, split=((0, 1, 2), (3, 4, 5)), recompute=recompute)
        for recompute in ("none", "full")
    )
    assert (none.recomputed, full.recomputed) == ("none", "full")
    assert full.recompute == ("none", *["full"] * 4, "none")
    assert [stage.cost.backward_s for stage in none.stages] == [6.0, 6.0]
    assert [stage.cost.backward_s for stage in full.stages] == [8.0, 8.0]
    assert full.predicted.step_s > none.predicted.step_s
    assert full.predicted.mfu == pytest.approx(none.predicted.mfu * none.predicted.step_s / full.predicted.step_s)
    # Two microbatches are in flight on rank 0: each saves 200, or 20 and a block's 90 in passing.
    assert [rank.peak_bytes for rank in none.ranks] == [400, 200]
    assert [rank.peak_bytes for rank in full.ranks] == [130, 110]
    assert full.fingerprint == none.fingerprint
    gpipe = reschedule(full, "gpipe")
    assert gpipe.recompute == full.recompute
    assert [rank.peak_bytes for rank in gpipe.ranks] == [170, 170]
    with pytest.raises(InputError, match=r"'half' is not known; none or selective or full or auto would do"):
        make_plan(model, cluster_of(2), batch, costs, recompute="half")


def test_a_refusal_says_whether_recomputing_would_fit():
    model, batch = (
        model_of(6, saved_bytes=[0, *[10 * 2**20] * 4, 0], recomputed_bytes=(2**20, 9 * 2**20)),
        Batch(4, 1, 16),
    )
    with pytest.raises(ImpossibleError, match=r"; --recompute full would fit, in (\S+) MiB$") as caught:
        make_plan(model, cluster_of(2), batch, costs_of([1.0] * 6), memory_limit=20 * 2**20)
    needed = parse_bytes(str(caught.value).split("would fit, in ")[1])
    plan = make_plan(model, cluster_of(2), batch, costs_of([1.0] * 6), memory_limit=20 * 2**20, recompute="full")
    assert max(rank.peak_bytes for rank in plan.ranks) == needed
    with pytest.raises(ImpossibleError, match=r"; --recompute full would not be enough$"):
        make_plan(model, cluster_of(2), batch, costs_of([1.0] * 6), memory_limit=2**20)
    with pytest.raises(ImpossibleError) as caught:
        make_plan(model, cluster_of(2), batch, costs_of([1.0] * 6), memory_limit=2**20, recompute="full")
    assert "--recompute" not in str(caught.value)


@sweep(range(100), 11)
def test_the_limit_that_a_refusal_suggests_works(seeds):
    for seed in seeds:
        _, _, stages, microbatches, costs, model, schedule = random_case(9000 + seed)
        batch = Batch(microbatches, 1, 16)
        with pytest.raises(ImpossibleError) as caught:
            make_plan(model, cluster_of(stages), batch, costs, schedule, memory_limit=100)
        suggested = parse_bytes(str(caught.value).split("a memory limit of ")[1].split(" would fit")[0])
        make_plan(model, cluster_of(stages), batch, costs, schedule, memory_limit=suggested)


@pytest.mark.parametrize("seed", [0, 2, 22, 30, 44, 76, 93, 112, *range(3, 9)])
def test_auto_fits_where_1f1b_does_and_is_not_slower(seed):
    """Under the tightest limit that 1F1B meets; its split is another one than ZB-H1's."""
    random = Random(seed)
    layers = random.randint(4, 9)
    stages, microbatches = random.randint(2, min(layers, 4)), random.choice([2, 4, 8])
    costs, model, batch = random_costs(random, layers), random_model(random, layers), Batch(microbatches, 1, 16)
    limit = None
    while True:
        try:
            named = make_plan(model, cluster_of(stages), batch, costs, "1f1b", limit)
        except ImpossibleError:
            break
        limit = max(rank.peak_bytes for rank in named.ranks) - 1
    auto = make_plan(model, cluster_of(stages), batch, costs, "auto", limit + 1)
    assert auto.predicted.step_s <= named.predicted.step_s


def test_auto_is_no_slower_than_any_schedules_own_plan():
    """Each with the split that suits it."""
    for seed in (6, 8, 14, 38, 49):
        random = Random(seed)
        layers = random.randint(5, 12)
        stages, batch = random.randint(2, min(layers, 4)), Batch(random.choice([2, 4, 8]), 1, 16)
        costs, model = random_costs(random, layers), random_model(random, layers)
        auto = make_plan(model, cluster_of(stages), batch, costs, "auto").predicted.step_s
        for name in (*ONE_STAGE, "zb-1p", "zb-2p"):
            assert auto <= make_plan(model, cluster_of(stages), batch, costs, name).predicted.step_s, (seed, name)


@some_of(range(16), 0, 1, 2, 3)
def test_auto_is_no_slower_on_the_same_stages_where_ranks_share_cores(seed):
    random = Random(seed)
    costs, model = random_costs(random, 8), random_model(random, 8)
    cluster = replace(cluster_of(4), at_once=random.choice([1, 2, 3]))
    plan = make_plan(model, cluster, Batch(random.choice([4, 8, 12]), 1, 16), costs)
    steps = {
        one.schedule: one.plan.predicted.step_s
        for one in compare_schedules(plan)
        if one.plan is not None and one.plan.stage_layers == plan.stage_layers
    }
    assert steps["auto"] == min(steps.values())


@sweep(range(12), 3)
def test_the_limit_that_autos_refusal_suggests_works(seeds):
    for seed in seeds:
        _, _, stages, microbatches, costs, model, _ = random_case(9000 + seed)
        batch = Batch(microbatches, 1, 16)
        with pytest.raises(ImpossibleError, match=r"^no schedule fits: rank \d needs .* of 100 B with ") as caught:
            make_plan(model, cluster_of(stages), batch, costs, "auto", memory_limit=100)
        suggested = parse_bytes(str(caught.value).split("a memory limit of ")[1].split(" would fit")[0])
        make_plan(model, cluster_of(stages), batch, costs, "auto", memory_limit=suggested)


def test_a_plan_was_verified_with_its_memory(monkeypatch):
    costs, model = costs_of([1.0] * 6), model_of(6, parameter_bytes=[2**20] * 6)
    monkeypatch.setattr("evenflow.search.solve._check_memory", lambda *_: None)
    with pytest.raises(ProgramError, match="B of"):
        make_plan(model, cluster_of(2), Batch(4, 1, 16), costs, memory_limit=10 * 2**20)


def test_a_limit_that_only_a_split_uneven_in_time_meets_is_met():
    """The embedding holds four blocks' bytes and takes no time: a cut even in time is over the limit."""
    model = model_of(8, parameter_bytes=[400, *[100] * 6, 100])
    costs = costs_of([0.0, *[1.0] * 7])
    batch = Batch(4, 1, 16)
    free = make_plan(model, cluster_of(2), batch, costs)
    assert len(free.stage_layers[0]) >= 4
    tight = make_plan(model, cluster_of(2), batch, costs, memory_limit=4 * 600)
    assert tight.stage_layers == ((0, 1, 2), (3, 4, 5, 6, 7))
    assert max(rank.peak_bytes for rank in tight.ranks) <= 2400
    assert tight.predicted.step_s > free.predicted.step_s


def test_a_copy_of_a_tied_weight_is_in_the_memory_of_its_rank():
    model, costs, batch = replace(model_of(6, tied=True), tied_bytes=100), costs_of([1.0] * 6), Batch(4, 1, 16)
    apart, alone = make_plan(model, cluster_of(2), batch, costs), make_plan(model, cluster_of(1), batch, costs)
    untied = make_plan(replace(model, tied_bytes=0), cluster_of(2), batch, costs, split=apart.stage_layers)
    assert apart.stages[1].memory.state_bytes == untied.stages[1].memory.state_bytes + 400
    assert apart.stages[0].memory == replace(untied.stages[0].memory, message_bytes=100)
    assert plan_program(apart).tied_apart == ((0, 1),)
    assert alone.tied == ()
    together = make_plan(model, cluster_of(2), batch, costs, "zb-v")
    assert plan_program(together).tied_apart == ()
    assert together.stages[-1].memory.state_bytes % 400 == 4 * together.stages[-1].memory.parameter_bytes % 400


def test_replicas_share_out_the_state_and_reduce_under_the_cooldown():
    model, costs = model_of(6), costs_of([1.0] * 6)
    batch = Batch(16, 1, 16, replicas=2)
    plans = [make_plan(model, cluster_of(4), batch, costs, axes=Axes(pp=2, dp=2), zero=zero) for zero in (0, 1)]
    assert [plan.microbatches for plan in plans] == [8, 8]
    assert [plan.global_batch_size for plan in plans] == [16, 16]
    for plan in plans:
        assert plan_program(plan).reduces
        assert plan.predicted.step_s == pytest.approx(plan_timeline(plan).step_s)
    for whole, shared in zip(plans[0].stages, plans[1].stages, strict=True):
        assert whole.memory.state_bytes == 4 * whole.memory.parameter_bytes
        assert shared.memory.state_bytes == 3 * shared.memory.parameter_bytes


def test_axes_and_batch_must_agree_with_the_devices():
    model, costs = model_of(6), costs_of([1.0] * 6)
    with pytest.raises(InputError, match=r"2 x 2 x 1 \(pp x dp x tp\) are 4 processes, and there are 2 devices"):
        make_plan(model, cluster_of(2), Batch(4, 1, 16, 2), costs, axes=Axes(pp=2, dp=2))
    with pytest.raises(InputError, match="the batch is for 1 replicas and dp is 2; the same would do"):
        make_plan(model, cluster_of(4), Batch(4, 1, 16), costs, axes=Axes(pp=2, dp=2))


def test_more_stages_than_layers_says_how_many_would_do():
    with pytest.raises(InputError, match=r"7 stages need at least 7 layers; made-up has 6: 6 processes or fewer"):
        make_plan(model_of(6), cluster_of(7), Batch(4, 1, 16), costs_of([1.0] * 6))


def test_a_schedule_that_is_not_known_is_refused():
    with pytest.raises(InputError, match="schedule 'zigzag' is not known"):
        make_plan(model_of(6), cluster_of(2), Batch(4, 1, 16), costs_of([1.0] * 6), "zigzag")


def test_costly_transfers_count():
    plan = make_plan(
        model_of(6, output_bytes=10),
        cluster_of(2),
        Batch(1, 1, 16),
        costs_of([1.0] * 6, link=LinkCost(0.5, 10.0)),
    )
    assert plan.predicted.step_s == pytest.approx(18 + 2 * 1.5)


@pytest.mark.parametrize(
    ("layers", "stages", "counts"),
    [(10, 2, [5, 5]), (11, 2, [6, 5]), (10, 4, [3, 2, 2, 3]), (8, 1, [8]), (6, 4, [2, 1, 1, 2])],
)
def test_the_equal_split_counts_blocks_alone(layers, stages, counts):
    split = equal_split(layers, stages)
    assert [len(own) for own in split] == counts
    assert [layer for own in split for layer in own] == list(range(layers))
