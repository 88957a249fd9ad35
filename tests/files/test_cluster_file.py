"""Why: a cluster that a short form cannot say is described once, by hand, so each mistake must be named by its key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evenflow.errors import InputError
from evenflow.files import save_device
from evenflow.files.cluster import load_cluster, read_cluster
from evenflow.program import verify_plan
from evenflow.search import plan_timeline
from evenflow.search.layouts import LayoutRequest, Pins, plan_layout
from evenflow.spec import parse_cluster
from evenflow.spec.accelerators import ACCELERATORS
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
        ('like = "A100-80GB"', "", "devices.fast: like is missing, and so is file; a device of"),
        ("half_tflops = 400", 'file = "device.json"', "devices.fast: like and file are both there; a device of"),
        ('like = "A100-80GB"', 'file = "none.json"', r"devices.fast.file: .*none.json: .*"),
        (
            'like = "A100-80GB"',
            'file = "../device.json"',
            r"devices.fast.file: '../device.json' leads out of .*; a copy",
        ),
        ('like = "A100-80GB"', 'file = "/etc/hosts"', r"devices.fast.file: '/etc/hosts' leads out of "),
        ('like = "A100-80GB"', 'file = ""', r"devices.fast.file: "),
        ('like = "A100-80GB"', 'file = "a\\u0000"', r"devices.fast.file: 'a\\x00' leads out of "),
        ('like = "A100-80GB"', 'file = "lab.toml"', r"devices.fast.file: .*lab.toml: is a cluster, not a device"),
    ],
)
def test_the_key_that_is_wrong_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(LAB.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        load_cluster(file)
    assert "\n" not in str(caught.value)


MINE = """
[[nodes]]
count = 2
devices = 4
device = "mine"
[devices.mine]
file = "measured/device.json"
"""


def test_a_measured_device_is_planned_with(tmp_path: Path) -> None:
    """What `profile --device` writes is of use: its figures are the plan's, and the plan says which were measured."""
    (tmp_path / "measured").mkdir()
    own = replace(
        ACCELERATORS["A100-80GB"], name="Some-processor", half_flops=100e12, node_bytes_per_s=20e9,
        source="measured here", assumed=("network_bytes_per_s",),
        measured=("half_flops", "memory_bytes_per_s", "node_bytes_per_s"),
    )  # fmt: skip
    save_device(own, tmp_path / "measured" / "device.json")
    file = tmp_path / "mine.toml"
    file.write_text(MINE)
    (group,) = load_cluster(file).groups
    assert group.accelerator == replace(own, name="mine", node_devices=4)
    plan, plain = (
        plan_layout(LayoutRequest(SMALL, cluster, 32, SEQ, pins=Pins(pp=4, tp=1, schedule="1f1b")))
        for cluster in (load_cluster(file), parse_cluster("2x4xA100-80GB"))
    )
    assert (plan.device, plan.peak_flops) == ("mine", 100e12)
    assert plan.predicted.step_s > 2 * plain.predicted.step_s
    file.write_text(MINE + "half_tflops = 200\n[links]\nnetwork_gbytes_per_s = 5\n")
    (group,) = load_cluster(file).groups
    assert group.accelerator.measured == ("memory_bytes_per_s", "node_bytes_per_s")
    assert (group.accelerator.assumed, group.accelerator.source) == ((), "the cluster file")


def test_a_link_that_leads_out_is_no_device(tmp_path: Path) -> None:
    save_device(ACCELERATORS["A100-80GB"], tmp_path / "device.json")
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "device.json").symlink_to(tmp_path / "device.json")
    file = tmp_path / "lab" / "mine.toml"
    file.write_text(MINE.replace("measured/", ""))
    with pytest.raises(InputError, match=r"devices.mine.file: 'device.json' leads out of .*; a copy in that folder"):
        load_cluster(file)


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


def test_a_short_form_is_not_a_file_that_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").write_bytes(b"\xff")
    (tmp_path / "2xA100-80GB").write_text("{}")
    assert read_cluster("local", 1).is_local
    assert read_cluster("2xA100-80GB").devices == 2
