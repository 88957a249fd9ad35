"""DeepSpeed's own classes take the exported module and configuration (in a process of its own: it changes torch)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from evenflow.errors import ImpossibleError
from evenflow.export import export_plan
from evenflow.plan import Plan
from tests.export.plans import TIED, UNTIED, plan_of, preset_plan

# The last rank of a made-up process group builds its part; nothing is sent.
_PROGRAM = """
import json, os, sys
rank, processes = int(sys.argv[1]), int(sys.argv[2])
os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0", RANK=str(rank), WORLD_SIZE=str(processes))
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
dist.init_process_group("fake", rank=rank, world_size=processes, store=FakeStore())
import deepspeed
# a minute of C++, for messages that nobody sends here (as an attribute of deepspeed.comm, torch is torch itself)
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
deepspeed.init_distributed(dist_backend="fake", verbose=False)
from deepspeed.pipe import LayerSpec
from deepspeed.runtime.config import DeepSpeedConfig
sys.path.insert(0, os.getcwd())
import evenflow_deepspeed as own

class Block(nn.Linear):
    pass

count = own.PARTS[-1]
kinds = [nn.Embedding, *[Block] * (count - 2), nn.Linear]
net = own.PlannedPipeline([LayerSpec(kind, 2, 2) for kind in kinds])
net._precompute_checkpointable_values()  # as its engine does
config = DeepSpeedConfig("ds_config.json", mpu=net.mpu())
print("found " + json.dumps({
    "parts": net.parts,
    "own": [net._local_start, net._local_stop],
    "classes": [type(module).__name__ for module in net.forward_funcs],
    "interval": net.activation_checkpoint_interval,
    "recomputed": net.is_checkpointable_results,
    "stages": net.num_stages,
    "replicas": net._topo.get_dim("data"),
    "batch": [config.train_batch_size, config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps],
    "zero": int(config.zero_optimization_stage),
}), flush=True)
os._exit(0)  # its own threads would keep the process
"""


def _load(folder: Path, plan: Plan) -> dict[str, Any]:
    """What DeepSpeed has read of a plan, on its last rank."""
    for name, text in export_plan(plan, "deepspeed").files.items():
        (folder / name).write_text(text)
    process = plan.axes.processes - 1
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(process), str(plan.axes.processes)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    line = next(line for line in ended.stdout.splitlines() if line.startswith("found "))
    found: dict[str, Any] = json.loads(line.removeprefix("found "))
    return found


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed; pip install '.[bench]'")
def test_pipeline_module_takes_the_parts_of_a_tied_preset(tmp_path: Path) -> None:
    plan = preset_plan(TIED, "deepspeed")
    found = _load(tmp_path, plan)
    assert [range(*pair) for pair in pairwise(found["parts"])] == [
        range(stage.layers[0], stage.layers[-1] + 1) for stage in plan.stages
    ]
    assert found["zero"] == plan.zero


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed; pip install '.[bench]'")
def test_pipeline_module_takes_the_plans_parts(tmp_path: Path) -> None:
    plan = replace(plan_of(ranks=3, blocks=9, dp=2, recompute=("full", "none", "full") * 3), zero=1)
    found = _load(tmp_path, plan)
    assert [range(*pair) for pair in pairwise(found["parts"])] == [
        range(stage.layers[0], stage.layers[-1] + 1) for stage in plan.stages
    ]
    own = plan.stages[plan.axes.coordinates(plan.axes.processes - 1).pp].layers
    assert found["own"] == [own[0], own[-1] + 1]
    assert found["classes"] == ["Block"] * (len(own) - 1) + ["Linear"]
    assert found["interval"] == 1
    assert found["recomputed"] == [plan.recompute[layer] == "full" for layer in own]
    assert len(set(found["recomputed"])) == 2
    assert (found["stages"], found["replicas"]) == (3, 2)
    assert found["batch"] == [plan.global_batch_size, plan.micro_batch_size, plan.microbatches]
    assert found["zero"] == 1


def test_what_deepspeed_cannot_run_is_refused() -> None:
    with pytest.raises(ImpossibleError, match="cannot run the schedule gpipe; a plan under 1f1b would do"):
        export_plan(plan_of("gpipe"), "deepspeed")
    with pytest.raises(ImpossibleError, match="has no cp here, and the plan has cp 2"):
        export_plan(plan_of(cp=2), "deepspeed")
    with pytest.raises(ImpossibleError, match="cannot recompute as the plan does"):
        export_plan(plan_of(recompute=("selective",) * 8), "deepspeed")


def test_bf16_is_asked_for() -> None:
    files = export_plan(replace(plan_of(), dtype="bf16"), "deepspeed").files
    assert json.loads(files["ds_config.json"])["bf16"] == {"enabled": True}
    assert "bf16" not in json.loads(export_plan(plan_of(), "deepspeed").files["ds_config.json"])


def test_tied_weights_and_tp_are_said() -> None:
    notes = " ".join(export_plan(replace(plan_of(tp=2), tied_bytes=100), "deepspeed").notes)
    assert "TiedLayerSpec" in notes
    assert "share themselves out over 2" in notes
    for name in (TIED, UNTIED):
        notes = " ".join(export_plan(preset_plan(name, "deepspeed"), "deepspeed").notes)
        assert ("TiedLayerSpec" in notes) == (name == TIED)
