"""torchtitan's own configuration manager and split take the exported module (in a process of its own)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from evenflow.errors import ImpossibleError
from evenflow.export import export_plan
from evenflow.plan import Plan
from tests.export.plans import TIED, UNTIED, plan_of, preset_plan

# One module of torchtitan's that has Triton kernels does not import where there is no GPU; nothing here uses them.
_PROGRAM = """
import json, os, sys
from unittest.mock import MagicMock
sys.modules["torchtitan.distributed.minimal_async_ep.kernels"] = MagicMock()
sys.path.insert(0, os.getcwd())
from torchtitan.config import ConfigManager
from torchtitan.distributed.pipeline_parallel import _get_pp_rank_to_stage_indices_mapping
from torchtitan.distributed.parallel_dims import ParallelDims

def facts(name, processes):
    config = ConfigManager().parse_args(["--module", name, "--config", "plan"])
    parallelism, training = config.parallelism, config.training
    parts = parallelism.module_fqns_per_model_part
    pp = parallelism.pipeline_parallel_degree
    dims = ParallelDims.from_config(parallelism, processes)
    csv = parallelism.pipeline_parallel_schedule_csv
    return {
        "parts": parts,
        "ranks": [list(_get_pp_rank_to_stage_indices_mapping(
            rank, pp, parallelism.pipeline_parallel_schedule, len(parts))) for rank in range(pp)],
        "dims": [dims.pp, dims.tp, dims.dp_replicate, dims.dp_shard, dims.cp, dims.ep],
        "batch": [training.local_batch_size, training.global_batch_size, training.seq_len,
                  parallelism.pipeline_parallel_microbatch_size],
        "csv": bool(csv) and os.path.isfile(csv),
        "schedule": parallelism.pipeline_parallel_schedule,
        "recompute": type(config.activation_checkpoint).__qualname__,
        "model": [config.model_spec.name, config.model_spec.flavor],
    }

print("found " + json.dumps([facts(name, int(processes)) for name, processes in zip(sys.argv[1::2], sys.argv[2::2])]))
"""


def _load(folder: Path, *plans: Plan) -> list[dict[str, Any]]:
    """What torchtitan has read of each plan, all of them in one process: its imports take seconds."""
    words: list[str] = []
    for number, plan in enumerate(plans):
        own = folder / f"plan{number}"
        own.mkdir()
        for name, text in export_plan(plan, "torchtitan").files.items():
            (own / name).write_text(text)
        words += [f"plan{number}.evenflow_torchtitan", str(plan.axes.pp * plan.axes.tp * plan.axes.dp)]
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *words], cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    line = next(line for line in ended.stdout.splitlines() if line.startswith("found "))
    found: list[dict[str, Any]] = json.loads(line.removeprefix("found "))
    return found


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchtitan") is None, reason="torchtitan is not installed; pip install '.[targets]'")
def test_torchtitan_reads_the_plan(tmp_path: Path) -> None:
    blocks = 14
    zbv = replace(plan_of("zb-v", blocks=blocks, dp=2, recompute=("full",) * blocks), zero=1)
    llama = replace(plan_of(ranks=2, blocks=32, tp=4), model="llama-3.1-8b", source="llama-3.1-8b")
    planned = [preset_plan(name, "torchtitan") for name in (TIED, UNTIED)]
    found, of_llama, *of_presets = _load(tmp_path, zbv, llama, *planned)
    for own, plan in zip(of_presets, planned, strict=True):
        blocks_of = [name for part in own["parts"] for name in part if name.startswith("layers.")]
        assert len(blocks_of) == len(plan.layers) - 2
        assert own["ranks"] == [list(rank.stages) for rank in plan.ranks]
    names = [name for part in found["parts"] for name in part if name != "rotary_emb"]
    assert names == ["tok_embeddings", *(f"layers.{n}" for n in range(blocks)), "norm", "lm_head"]
    assert all(part[-1] == "rotary_emb" for part in found["parts"])
    assert found["ranks"] == [list(rank.stages) for rank in zbv.ranks]
    assert found["dims"] == [4, 1, 1, 2, 1, 1]
    assert found["batch"] == [16, 32, 128, 2]
    assert found["csv"]
    assert found["recompute"] == "FullAC.Config"

    assert of_llama["model"] == ["llama3", "8B"]
    assert sum(len(part) for part in of_llama["parts"]) == 32 + 3
    assert of_llama["ranks"] == [[0], [1]]
    assert (of_llama["schedule"], of_llama["csv"]) == ("1F1B", False)
    assert of_llama["dims"] == [2, 4, 1, 1, 1, 1]
    assert of_llama["recompute"] == "NoneType"


def test_the_csv_is_there_where_the_schedule_is_not_torchs_own() -> None:
    assert list(export_plan(plan_of(), "torchtitan").files) == ["evenflow_torchtitan.py"]
    assert list(export_plan(plan_of("gpipe"), "torchtitan").files) == ["evenflow_torchtitan.py"]
    for schedule in ("interleaved", "zb-h1", "zb-v"):
        assert "schedule.csv" in export_plan(plan_of(schedule, blocks=14), "torchtitan").files


def test_what_torchtitan_cannot_run_is_refused_or_said() -> None:
    with pytest.raises(ImpossibleError, match="recomputes all blocks alike"):
        export_plan(plan_of(recompute=("full",) * 7 + ("none",)), "torchtitan")
    with pytest.raises(ImpossibleError, match="pipelines over 2 or more ranks"):
        export_plan(plan_of("gpipe", ranks=1, stages_per_rank=2), "torchtitan")
    notes = " ".join(export_plan(replace(plan_of(dp=2, tp=2), zero=1), "torchtitan").notes)
    assert "no ZeRO 1 by itself" in notes
    assert "sequence parallelism" in notes
    for name in (TIED, UNTIED):
        notes = " ".join(export_plan(preset_plan(name, "torchtitan"), "torchtitan").notes)
        assert ("ties none between ranks" in notes) == (name == TIED)
    for dtype, param in (("bf16", "bfloat16"), ("fp32", "float32")):
        text = export_plan(replace(plan_of(), dtype=dtype), "torchtitan").files["evenflow_torchtitan.py"]
        assert f'"mixed_precision_param": "{param}"' in text


def test_what_its_transformers_backend_does_otherwise_is_said() -> None:
    """Its `parallelize_hf_transformers` makes two weights of a tied one, also on one rank, and mixtures need a spec."""
    one = replace(plan_of(ranks=1, dp=2), source="/models/own")
    assert "share a weight" not in " ".join(export_plan(one, "torchtitan").notes)
    tied = replace(one, tied_bytes=64)
    assert "transformers backend trains one for each" in " ".join(export_plan(tied, "torchtitan").notes)
    for name, is_said in (("mixtral-8x7b", True), ("qwen3-30b-a3b", False), ("llama-2-7b", False)):
        notes = " ".join(export_plan(replace(plan_of(), model=name, source=name), "torchtitan").notes)
        assert (f"the experts of {name} is yours to add" in notes) == is_said


@pytest.mark.parametrize(
    ("source", "axes", "seq_length", "would"),
    [
        ("/models/own", {}, 127, 126),
        ("/models/own", {"tp": 4}, 132, 128),
        ("llama-3.1-8b", {"tp": 4}, 130, 128),
        ("llama-3.1-8b", {"tp": 2, "cp": 2}, 132, 128),
        ("llama-3.1-8b", {"tp": 64}, 33, 64),
    ],
)
def test_sequences_that_torchtitan_cannot_cut_are_refused(
    source: str, axes: dict[str, int], seq_length: int, would: int
) -> None:
    plan = replace(plan_of(ranks=2, **axes), source=source, model=source.rpartition("/")[2], seq_length=seq_length)
    with pytest.raises(ImpossibleError, match=f"have {seq_length} tokens; --seq-length {would} would do"):
        export_plan(plan, "torchtitan")
    export_plan(replace(plan, seq_length=would), "torchtitan")


def test_a_directory_that_is_called_like_a_preset_is_none() -> None:
    """It may hold any model: torchtitan's registered one would be trained in its place."""
    plan = replace(plan_of(ranks=2, blocks=32), model="llama-3.1-8b", source="/models/llama-3.1-8b")
    written = export_plan(plan, "torchtitan")
    (text,) = (text for name, text in written.files.items() if name.endswith(".py"))
    assert "llama3_8b" not in text
    assert 'HF_MODEL = "/models/llama-3.1-8b"' in text
