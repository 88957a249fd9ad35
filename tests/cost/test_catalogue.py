"""A traced model on devices of the catalogue costs what a preset of its dimensions does, and messages what links do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from evenflow.cost import Costs, analytic_costs
from evenflow.cost.pinned import fabric_of
from evenflow.cost.preset import PresetCosts, Shape
from evenflow.cost.preset_model import preset_costs
from evenflow.cost.roofline import Roofline
from evenflow.files import load_plan, save_plan
from evenflow.models import ModelSource, describe_model, find_model
from evenflow.plan import Axes
from evenflow.search import make_plan, plan_timeline
from evenflow.spec import Batch, Dtype, Model, Traffic
from evenflow.spec.cluster import parse_cluster
from evenflow.spec.presets import find_preset
from evenflow.spec.trainers import OURS, find_trainer
from evenflow.train import plan_model

SEQ = 4096
SIZES: dict[str, Any] = {
    "hidden_size": 4096, "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": SEQ,
    "tie_word_embeddings": False,
}  # fmt: skip


def source_of(folder: Path, sizes: dict[str, Any]) -> ModelSource:
    (folder / "config.json").write_text(json.dumps(SIZES | sizes))
    return find_model(str(folder))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """Four blocks of llama-2-7b."""
    own = {"model_type": "llama", "intermediate_size": 11008, "num_hidden_layers": 4, "num_key_value_heads": 32}
    return source_of(tmp_path_factory.mktemp("llama"), own)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """Two blocks of mixtral-8x7b."""
    own = {"model_type": "mixtral", "intermediate_size": 14336, "num_hidden_layers": 2, "num_key_value_heads": 8}
    return source_of(tmp_path_factory.mktemp("mixtral"), own | {"num_local_experts": 8, "num_experts_per_tok": 2})


@pytest.fixture(scope="module")
def describe(llama: ModelSource) -> dict[tuple[int, Dtype], Model]:
    """For one process and for two that share it."""
    kinds: tuple[tuple[int, Dtype], ...] = ((1, "bf16"), (2, "bf16"), (1, "fp32"))
    return {(tp, dtype): describe_model(llama, 1, SEQ, tp, dtype) for tp, dtype in kinds}


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("cluster", ["1x8xA100-80GB", "1x8xH100-80GB"])
def test_a_traced_block_costs_what_a_presets_does(
    describe: dict[tuple[int, Dtype], Model], cluster: str, tp: int
) -> None:
    """Eager layers move more bytes than a trainer's fused ones do: that is all that tells them apart."""
    whole = parse_cluster(cluster)
    device = whole.groups[0].accelerator
    preset = PresetCosts(find_preset("llama-2-7b"), device, SEQ, find_trainer(OURS)).figures(
        Shape(micro_batch=1, tp=tp, cp=1, ep=1)
    )
    traced = analytic_costs(describe[tp, "bf16"], whole).layers[1]
    forward, backward = preset.forward_s[1], preset.input_s[0][1] + preset.weight_s[1]
    assert forward < traced.forward_s < 1.3 * forward
    assert backward < traced.backward_s < 1.45 * backward


@pytest.mark.parametrize("cp", [2, 4])
@pytest.mark.parametrize("cluster", ["1x8xA100-80GB", "4x2xH100-80GB"])
def test_a_part_of_a_sequence_costs_as_much_less_as_a_presets(llama: ModelSource, cluster: str, cp: int) -> None:
    """Seconds and activations with cp, to those without, within a few percent.

    Adding up gradients takes as long for a part of the tokens, which no preset counts: of the head's backward that is
    more than a few.
    """
    whole = parse_cluster(cluster)
    preset = PresetCosts(find_preset("llama-2-7b"), whole.groups[0].accelerator, SEQ, find_trainer(OURS))
    one, part = (preset.figures(Shape(cp=own, micro_batch=2)) for own in (1, cp))
    models = [describe_model(llama, 2, SEQ, dtype="bf16", cp=own) for own in (1, cp)]
    traced = [analytic_costs(model, whole).layers for model in models]
    for layer in (1, -1):
        kind = pytest.approx(part.forward_s[layer] / one.forward_s[layer], rel=0.05)
        assert traced[1][layer].forward_s / traced[0][layer].forward_s == kind
        kind = pytest.approx(
            (part.input_s[0][layer] + part.weight_s[layer]) / (one.input_s[0][layer] + one.weight_s[layer]),
            rel=0.05 if layer == 1 else 0.1,
        )
        assert traced[1][layer].backward_s / traced[0][layer].backward_s == kind
        kind = pytest.approx(part.saved_bytes[0][layer] / one.saved_bytes[0][layer], rel=0.03)
        assert models[1].layers[layer].saved_bytes / models[0].layers[layer].saved_bytes == kind
    for mode, again in ((1, "selective_s"), (2, "recompute_s")):  # attention, or the whole block again
        # A traced block's attention takes the part of its seconds that it is of its FLOPs.
        kind = pytest.approx(part.input_s[mode][1] / one.input_s[mode][1], rel=0.05 if mode == 2 else 0.08)
        seconds = [own[1].input_s + getattr(own[1], again) for own in traced]
        assert seconds[1] / seconds[0] == kind


def moved_by_inputs(model: Model) -> int:
    """Bytes of all that is no product, in the input half of a block's backward."""
    work = model.layers[1].input_work
    assert work is not None
    return sum(own.moved_bytes for own in work.operators if isinstance(own, Traffic))


@pytest.mark.parametrize("ep", [2, 8])
@pytest.mark.parametrize("cluster", ["1x8xH100-80GB", "4x2xH100-80GB"])
def test_a_part_of_the_experts_costs_as_much_less_as_a_presets(mixtral: ModelSource, cluster: str, ep: int) -> None:
    """Seconds of a block, what a step does once, and what it keeps."""
    whole = parse_cluster(cluster)
    preset = PresetCosts(find_preset("mixtral-8x7b"), whole.groups[0].accelerator, SEQ, find_trainer(OURS))
    shapes = [Shape(ep=own, micro_batch=2) for own in (1, ep)]
    one, part = map(preset.figures, shapes)
    models = [describe_model(mixtral, 2, SEQ, dtype="bf16", ep=own) for own in (1, ep)]
    traced = [analytic_costs(model, whole, dp=8).layers[1] for model in models]
    # A traced backward also reads the gradients of experts in bf16 and writes them in fp32: fewer with ep.
    rate = whole.groups[0].accelerator.memory_bytes_per_s * Roofline().memory
    moved = [moved_by_inputs(own) / rate for own in models]
    numbers = [(own.parameter_bytes // 2, own.expert_gradient_bytes // 4) for own in (it.layers[1] for it in models)]
    away = numbers[0][0] - numbers[1][0]
    assert (moved[0] - moved[1]) * rate == pytest.approx((2 + 4) * away)
    assert traced[1].forward_s - traced[0].forward_s == pytest.approx(
        part.forward_s[1] - one.forward_s[1], rel=0.05, abs=0.02 * one.forward_s[1]
    )
    assert traced[1].input_s - traced[0].input_s - (moved[1] - moved[0]) == pytest.approx(
        part.input_s[0][1] - one.input_s[0][1], rel=0.05, abs=0.02 * one.input_s[0][1]
    )
    assert numbers[0][0] == one.dense[1] + one.experts[1]
    assert numbers[1] == (part.dense[1] + part.experts[1], part.experts[1])
    assert models[1].layers[1].saved_bytes == pytest.approx(models[0].layers[1].saved_bytes, rel=1e-3)
    assert one.saved_bytes[0][1] == part.saved_bytes[0][1]
    assert traced[1].reduce_s is not None  # experts over 8 / ep replicas, all else over 8; gradients of four bytes here
    step = preset.step_figures(replace(shapes[1], micro_batch=1), 8, 0)
    alone = 2 * preset.fabric.node.latency_s * 8  # of messages, which is the same for both
    assert traced[1].reduce_s == pytest.approx(2 * step.reduce_s[1], rel=0.1, abs=alone)


@pytest.mark.parametrize("zero", [0, 1])
def test_state_of_experts_is_shared_out_as_a_presets(mixtral: ModelSource, zero: Literal[0, 1]) -> None:
    cluster, batch = parse_cluster("1x8xH100-80GB"), Batch(16, 1, SEQ, 8)
    preset = PresetCosts(find_preset("mixtral-8x7b"), cluster.groups[0].accelerator, SEQ, find_trainer(OURS))
    expected = preset.step_figures(Shape(ep=4), 8, zero).state_bytes
    plan = plan_model(mixtral, cluster, batch, axes=Axes(dp=8, ep=4), zero=zero, dtype="bf16", recompute="full")[1]
    layers = preset.layers
    wanted = expected[0] + 2 * expected[1] + expected[layers - 1]
    assert plan.stages[0].memory.state_bytes == pytest.approx(wanted, rel=1e-3)
    assert plan.axes.copies == 8


def test_fp32_has_no_tensor_cores(describe: dict[tuple[int, Dtype], Model]) -> None:
    whole = parse_cluster("8xA100-80GB")
    half, single = (analytic_costs(describe[1, dtype], whole).layers[1].forward_s for dtype in ("bf16", "fp32"))
    assert 8 < single / half < 16  # 312 to 19.5 TFLOP/s, and traffic that is twice as much


def test_messages_cost_what_their_links_do(describe: dict[tuple[int, Dtype], Model]) -> None:
    def costs(cluster: str, dp: int = 1) -> Costs:
        return analytic_costs(describe[1, "bf16"], parse_cluster(cluster), dp)

    inside, between = costs("1x8xH100-80GB"), costs("8x1xH100-80GB")
    assert between.link.bytes_per_s < 0.2 * inside.link.bytes_per_s  # 50 GB/s of network, 450 of NVLink
    both = costs("2x8xH100-80GB")
    edges = [both.links(range(16)).cost((rank, rank + 1)) for rank in range(15)]
    assert edges == [inside.link] * 7 + [between.link] + [inside.link] * 7
    assert inside.sum_link is None
    near, far = costs("1x8xH100-80GB", dp=4).sum_link, costs("4x2xH100-80GB", dp=8).sum_link
    assert near is not None
    assert far is not None
    assert far.bytes_per_s < 0.3 * near.bytes_per_s
    assert inside.origin["link"] == "analytic"
    assert between.origin["link"] == "assumed"  # what nodes are joined by is nobody's data sheet
    assert both.origin["link"] == "assumed"


@pytest.mark.parametrize(
    ("cluster", "dp", "far"),
    [("2x8xH100-80GB", 1, [3]), ("2x2xH100-80GB", 1, [0]), ("2x8xH100-80GB", 4, [0]), ("1x8xH100-80GB", 1, [])],
)
def test_edges_are_charged_as_a_presets_are(
    describe: dict[tuple[int, Dtype], Model], cluster: str, dp: int, far: list[int]
) -> None:
    """Shared out over two: two nodes of eight make eight ranks, of whose seven edges one leaves a node."""
    whole = parse_cluster(cluster)
    traced = analytic_costs(describe[2, "bf16"], whole, dp)
    device, pp = whole.groups[0].accelerator, whole.devices // (2 * dp)
    preset = PresetCosts(find_preset("llama-2-7b"), device, SEQ, find_trainer(OURS))
    made = preset_costs(preset, Shape(tp=2), pp, dp, 0, 0.0)
    assert traced.links(range(pp)) == made.links(range(pp))
    assert traced.origin["link"] == made.origin["link"] == ("assumed" if far else "analytic")
    rates = [traced.links(range(pp)).cost((rank, rank + 1)).bytes_per_s for rank in range(pp - 1)]
    assert [rank for rank, rate in enumerate(rates) if rate == preset.fabric.network.bytes_per_s] == far
    assert all(rates[rank] == preset.fabric.node.bytes_per_s for rank in range(pp - 1) if rank not in far)


def test_a_traced_plan_waits_for_the_network_where_its_pipeline_leaves_a_node(
    describe: dict[tuple[int, Dtype], Model], tmp_path: Path
) -> None:
    model = describe[2, "bf16"]
    for cluster in ("1x8xH100-80GB", "2x4xH100-80GB", "4x2xH100-80GB"):
        whole = parse_cluster(cluster)
        plan = make_plan(model, whole, Batch(8, 1, SEQ), analytic_costs(model, whole), axes=Axes(pp=4, tp=2))
        save_plan(plan, tmp_path / "plan.json")
        kept = load_plan(tmp_path / "plan.json")
        assert plan_timeline(kept).step_s == plan.predicted.step_s
        fabric = fabric_of(whole.groups[0].accelerator, Roofline())
        in_one = plan_timeline(replace(kept, link=fabric.node, network=None)).step_s
        assert in_one < plan.predicted.step_s or cluster.startswith("1x")
        if cluster.startswith("2x"):
            assert plan.predicted.step_s < plan_timeline(replace(kept, link=fabric.network, network=None)).step_s
