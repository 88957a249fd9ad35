"""Why: a cluster that a short form cannot say is described once, by hand, so each mistake must be named by its key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evenflow.errors import InputError
from evenflow.files.cluster import load_cluster
from evenflow.program import verify_plan
from evenflow.search import plan_timeline
from evenflow.search.layouts import LayoutRequest, Pins, plan_layout
from tests.search.test_layouts import SEQ, SMALL

LAB = """
name = "lab"
[[nodes]]
devices = 4
device = "fast"
[[nodes]]
count = 2
devices = 2
device = "V100"
memory = "16GiB"
[links]
network_gbytes_per_s = 1.25
[devices.fast]
like = "A100-80GB"
half_tflops = 400
"""


def test_nodes_devices_and_links(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(LAB)
    cluster = load_cluster(file)
    fast, slow = cluster.groups
    assert (cluster.name, cluster.devices) == ("lab", 8)
    assert (fast.devices, fast.accelerator.half_flops, fast.accelerator.network_bytes_per_s) == (4, 400e12, 1.25e9)
    assert (slow.devices, slow.node_devices, slow.accelerator.memory_bytes) == (4, 2, 16 * 2**30)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("devices = 4", "devces = 4", r"nodes.0.(devices: is missing|devces: is not a key)"),
        ('device = "V100"', 'device = "V1000"', "nodes.1.device: device 'V1000' is not in the catalogue; V100"),
        ('memory = "16GiB"', 'memory = "16 lots"', "nodes.1.memory"),
        ("= 1.25", "= -1", "links.network_gbytes_per_s: should be|links.network_gbytes_per_s"),
        ("[links]", "[links", "is not TOML"),
        ('like = "A100-80GB"', "", "devices.fast.like: is missing"),
    ],
)
def test_the_key_that_is_wrong_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(LAB.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        load_cluster(file)
    assert "\n" not in str(caught.value)


def test_stages_are_sized_for_devices_that_differ(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(LAB)
    wide = replace(SMALL, layers=16)
    plan = plan_layout(LayoutRequest(wide, load_cluster(file), 32, SEQ, pins=Pins(tp=1, dp=1, schedule="1f1b")))
    assert plan.speeds is not None
    assert plan.memory_limits is not None
    held = [len(stage.layers) for stage in plan.stages]
    slow = [count for count, speed in zip(held, plan.speeds, strict=True) if speed < 1]
    fast = [count for count, speed in zip(held, plan.speeds, strict=True) if speed == 1]
    assert max(slow) < max(fast)
    assert all(rank.peak_bytes <= limit for rank, limit in zip(plan.ranks, plan.memory_limits, strict=True))
    verify_plan(plan)
    assert plan_timeline(plan).step_s == pytest.approx(plan.predicted.step_s)
    blind = replace(plan, speeds=None)
    assert plan_timeline(blind).step_s < plan.predicted.step_s
