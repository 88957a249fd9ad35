"""A traced model on devices of the catalogue costs what a preset of its dimensions does, and messages what links do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evenflow.cost import Costs, analytic_costs
from evenflow.cost.pinned import fabric_of
from evenflow.cost.preset import PresetCosts, Shape
from evenflow.cost.preset_model import preset_costs
from evenflow.cost.roofline import Roofline
from evenflow.files import load_plan, save_plan
from evenflow.models import describe_model, find_model
from evenflow.plan import Axes
from evenflow.search import make_plan, plan_timeline
from evenflow.spec import Batch, Dtype, Model
from evenflow.spec.cluster import parse_cluster
from evenflow.spec.presets import find_preset
from evenflow.spec.trainers import OURS, find_trainer

SEQ = 4096


@pytest.fixture(scope="module")
def describe(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, Dtype], Model]:
    """Four blocks of llama-2-7b, for one process and for two that share it."""
    folder: Path = tmp_path_factory.mktemp("llama")
    sizes = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 4,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": SEQ,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(sizes))
    source = find_model(str(folder))
    kinds: tuple[tuple[int, Dtype], ...] = ((1, "bf16"), (2, "bf16"), (1, "fp32"))
    return {(tp, dtype): describe_model(source, 1, SEQ, tp, dtype) for tp, dtype in kinds}


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
