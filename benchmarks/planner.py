"""How good the planner is, and how quick: against trying everything, a clock, published layouts and equal splits.

`python -m benchmarks.planner [--only optimal|speed|published|unequal|slowed] [--cases N] [--json]`

* `optimal`: random small spaces, each solved by the search and by trying every split and every recomputation.
* `speed`: whole commands, the second of two calls, free and fixed.
* `published`: the best published layouts, fixed, beside the planner's own under the same costs and memory.
* `unequal`: 4 fast and 4 slow devices, beside equal counts of blocks on the same layout and beside the best of those.
* `slowed`: this machine with one of two processes slowed to half by a loop that has its core every other 5 ms (which
  takes root): profiled, planned and run, beside the equal split.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import numpy as np

from evenflow.cost.preset import PresetCosts
from evenflow.errors import InputError
from evenflow.search.layouts import LayoutRequest, Pins, Space, plan_layout
from evenflow.search.layouts.best_first import best_first
from evenflow.search.layouts.layout import Layout
from evenflow.search.layouts.solve import Kind, Solver
from evenflow.spec import parse_cluster
from evenflow.spec.accelerators import ACCELERATORS
from evenflow.spec.architecture import Architecture
from evenflow.spec.cluster import NodeGroup, grouped_cluster
from evenflow.spec.presets import find_preset
from evenflow.spec.trainers import TRAINERS
from tests.search.exhaustive import best_by_trying_everything

_GIB = 2**30


def optimal(cases: int) -> dict[str, Any]:
    """Random small spaces: the same best step as trying everything?"""
    equal = worst = 0.0
    done = 0
    for seed in range(10 * cases):
        if done == cases:
            break
        random = Random(seed)
        it = Architecture("small", "made up", 3, 2048, 8192, 16, 8, 128, random.choice([8000, 32000, 128000]))
        trainer = TRAINERS[random.choice(["evenflow", "evenflow", "megatron", "torchtitan", "deepspeed"])]
        pins = Pins(micro_batch_size=random.choice([1, 2]), zero=random.choice([0, 1]))
        space = Space(it, random.choice([2, 3]), 8, 4, random.choice([1024, 2048]), trainer, pins)
        costs = PresetCosts(
            it, ACCELERATORS[random.choice(["A100-80GB", "V100", "H100-80GB"])], space.seq_length, trainer
        )
        try:
            layouts = space.layouts()
        except InputError:
            continue
        state = costs.step_figures(Layout(1, 1, 1, 1, 1, 1, "1f1b", 1, 0, 1).shape, 1, 0).state_bytes.sum()
        cap = float(state * random.uniform(0.3, 2.0))
        ours = best_first(layouts, costs, Solver(costs, [Kind(space.devices, 1.0, cap)], "auto")).best
        step = ours.step_s if ours else float("inf")
        best = best_by_trying_everything(layouts, costs, cap)
        same = step == best or abs(step / best - 1) < 1e-9
        equal += same
        worst = max(worst, 0.0 if same else step / best - 1)
        done += 1
    return {"cases": done, "equal": int(equal), "worst": worst}


_COMMANDS: dict[str, tuple[float, list[str]]] = {
    "gpt3-175b, 128x8xA100-80GB, 1536 x 2048": (3, [
        "gpt3-175b", "--cluster", "128x8xA100-80GB", "--global-batch-size", "1536", "--seq-length", "2048"]),
    "llama-3.1-405b, 2048x8xH100-80GB, 2048 x 8192": (5, [
        "llama-3.1-405b", "--cluster", "2048x8xH100-80GB", "--global-batch-size", "2048", "--seq-length", "8192"]),
    "gpt3-175b, every axis fixed": (1, [
        "gpt3-175b", "--cluster", "128x8xA100-80GB", "--global-batch-size", "1536", "--seq-length", "2048",
        "--pp", "16", "--tp", "4", "--dp", "16", "--schedule", "interleaved", "--stages-per-rank", "6",
        "--micro-batch-size", "1",
        "--zero", "1", "--recompute", "auto"]),
    "llama-3.1-405b, 100,000 devices, batch 12500": (60, [
        "llama-3.1-405b", "--cluster", "12500x8xH100-80GB", "--global-batch-size", "12500", "--seq-length", "8192"]),
}  # fmt: skip


def speed() -> dict[str, Any]:
    """Seconds of whole commands, second call: its modules are compiled by then, if nothing forbids to keep that."""
    found: dict[str, Any] = {}
    keeping = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for name, (most, arguments) in _COMMANDS.items():
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "evenflow", "plan", *arguments, "--json"],
                capture_output=True,
                text=True,
                check=False,
                env=keeping,
            )
            seconds.append(time.perf_counter() - began)
        if done.returncode:
            found[name] = {"seconds": seconds[-1], "wanted": most, "refused": done.stderr.strip()}
            continue
        plan = json.loads(done.stdout)
        found[name] = {
            "seconds": seconds[-1], "wanted": most, "step_s": plan["predicted"]["step_s"], "gap": plan["bound"]["gap"],
            "axes": plan["axes"], "layouts": plan["search"]["considered"],
        }  # fmt: skip
    return found


# benchmarks/data/published.csv, rows of Korthikanti et al. 2022 (selective, sequence parallel) and of Megatron-Bridge.
_PUBLISHED: dict[str, tuple[str, str, int, int, Pins]] = {
    "gpt3-175b": ("gpt3-175b", "8x8xA100-80GB", 64, 2048, Pins(
        pp=8, tp=8, dp=1, cp=1, stages_per_rank=3, schedule="interleaved", micro_batch_size=1, zero=0)),
    "gpt-1t": ("gpt-1t", "64x8xA100-80GB", 512, 2048, Pins(
        pp=64, tp=8, dp=1, cp=1, schedule="1f1b", micro_batch_size=1, zero=0)),
    "llama-3.1-405b": ("llama-3.1-405b", "128x8xH100-80GB", 512, 8192, Pins(
        pp=8, tp=8, dp=8, cp=2, stages_per_rank=8, schedule="interleaved", micro_batch_size=1, zero=1)),
}  # fmt: skip


def published() -> dict[str, Any]:
    """Published layouts, fixed, beside the planner's own."""
    found: dict[str, Any] = {}
    for name, (model, cluster, batch, seq, pins) in _PUBLISHED.items():
        ask = LayoutRequest(find_preset(model), parse_cluster(cluster), batch, seq, "megatron")
        theirs, ours = plan_layout(replace(ask, pins=pins)), plan_layout(ask)
        found[name] = {
            "theirs_s": theirs.predicted.step_s, "ours_s": ours.predicted.step_s,
            "ratio": theirs.predicted.step_s / ours.predicted.step_s,
            "ours": f"{ours.axes}, {ours.schedule} x {len(ours.stages) // len(ours.ranks)}, "
                    f"microbatches of {ours.micro_batch_size}, ZeRO {ours.zero}",
            "why": [note for note in theirs.notes if " costs " in note and "nothing" not in note],
        }  # fmt: skip
    return found


def unequal() -> dict[str, Any]:
    """4 fast and 4 slow devices, beside equal splits."""
    groups = (NodeGroup(ACCELERATORS["A100-40GB"], 1, 4), NodeGroup(ACCELERATORS["V100"], 1, 4))
    cluster = grouped_cluster("4xA100-40GB + 4xV100", groups)
    ask = LayoutRequest(find_preset("llama-2-7b"), cluster, 64, 2048)
    plan = plan_layout(ask)
    costs = PresetCosts(ask.architecture, ACCELERATORS["A100-40GB"], 2048, TRAINERS["evenflow"])
    slow = PresetCosts(ask.architecture, ACCELERATORS["V100"], 2048, TRAINERS["evenflow"])
    # Equal counts on devices all as slow as the slower half is what a trainer that knows no difference waits for.
    kinds = [Kind(4, 1.0, 1e15), Kind(4, _block_s(costs) / _block_s(slow), 1e15)]
    solver = Solver(costs, kinds, "auto")
    equal = []
    for layout in Space(ask.architecture, 8, 4, 64, 2048, TRAINERS["evenflow"]).layouts():
        if layout.stages_per_rank == 1 and layout.pp > 1 and solver.has_ranks(layout):
            counts = [1 + b - a for a, b in _equal(ask.architecture.layers, layout.pp)]
            ends = np.cumsum([0, *counts]) + 0
            ends[1:] = [1 + stop for _, stop in _equal(ask.architecture.layers, layout.pp)]
            ends[-1] = ask.architecture.layers + 2
            equal.append(solver.of_split(layout, tuple(ends.tolist())).step_s)
    return {
        "ours_s": plan.predicted.step_s, "best_equal_s": min(equal), "ratio": min(equal) / plan.predicted.step_s,
        "axes": str(plan.axes), "speeds": list(plan.speeds or ()),
    }  # fmt: skip


def _equal(blocks: int, ranks: int) -> list[tuple[int, int]]:
    return [(blocks * rank // ranks, blocks * (rank + 1) // ranks) for rank in range(ranks)]


def _block_s(costs: PresetCosts) -> float:
    own = costs.figures(Layout(1, 1, 1, 1, 1, 1, "1f1b", 1, 0, 1).shape)
    return float((own.forward_s + own.input_s[0] + own.weight_s)[1:-1].sum())


_CONFIG = {
    "model_type": "llama", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 12,
    "num_attention_heads": 6, "num_key_value_heads": 6, "vocab_size": 2048, "max_position_embeddings": 256,
}  # fmt: skip
_SHAPE = ["--micro-batch-size", "2", "--seq-length", "128"]


# A loop beside a rank takes more or less than half, as the kernel shares a core out by session and not by process, and
# favours who waited. One of real-time priority takes what it takes; that needs root, and else the loop is a plain one.
_HALF_OF_A_CORE = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
try:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    pause = time.sleep
except PermissionError:
    pause = lambda _: None
while True:
    end = time.monotonic() + 0.005
    while time.monotonic() < end:
        pass
    pause(0.005)
"""


def slowed(rounds: int = 3) -> dict[str, Any]:
    """One of two processes slowed to half: profile, plan, run."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="evenflow-") as name:
        folder = Path(name)
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps(_CONFIG))
        busy = subprocess.Popen([sys.executable, "-c", _HALF_OF_A_CORE, str(cores[1])])
        try:
            _evenflow("profile", folder / "model", *_SHAPE, "--processes", "2", "--out", folder / "profile.json")
            plan_file, equal_file = folder / "plan.json", folder / "equal.json"
            _evenflow(
                "plan", folder / "model", *_SHAPE, "--profile", folder / "profile.json", "--pp", "2", "--out", plan_file
            )
            _write_equal(folder / "model", folder / "profile.json", equal_file)
            steps: dict[str, list[float]] = {"plan": [], "equal": []}
            for number in range(rounds):
                for kind, file in (("plan", plan_file), ("equal", equal_file)):
                    steps[kind] += _run(folder, file, f"{kind}{number}")
        finally:
            busy.kill()
            busy.wait()
        plan = json.loads(plan_file.read_text())
        ours, theirs = median(steps["plan"]), median(steps["equal"])
        return {
            "plan_s": ours, "equal_s": theirs, "ratio": theirs / ours, "speeds": plan["speeds"],
            "layers": [len(stage["layers"]) for stage in plan["stages"]], "predicted_s": plan["predicted"]["step_s"],
        }  # fmt: skip


def _evenflow(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "evenflow", *map(str, arguments)], check=True, capture_output=True)


def _run(folder: Path, plan: Path, name: str) -> list[float]:
    out = folder / name
    _evenflow(
        "train", folder / "model", "--data", Path(sysconfig.get_paths()["stdlib"]) / "email", "--out", out,
        "--plan", plan, "--steps", "12", "--no-check",
    )  # fmt: skip
    return [json.loads(line)["step_s"] for line in (out / "metrics.jsonl").read_text().splitlines()][3:]


def _write_equal(model: Path, profile: Path, out: Path) -> None:
    """The plan of equal counts of blocks, from the same profile."""
    from evenflow.files import load_profile, save_plan
    from evenflow.models import describe_model, find_model
    from evenflow.search import make_plan
    from evenflow.search.candidate import equal_split
    from evenflow.spec import Batch
    from evenflow.spec.cluster import local_cluster

    own, batch = load_profile(profile), Batch(16, 2, 128)
    described = describe_model(find_model(str(model)), 2, 128, 1)
    split = equal_split(len(described.layers), 2)
    save_plan(make_plan(described, local_cluster(2, own.threads), batch, own.costs(), split=split), out)


_PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "optimal": lambda arguments: optimal(arguments.cases),
    "speed": lambda _: speed(),
    "published": lambda _: published(),
    "unequal": lambda _: unequal(),
    "slowed": lambda _: slowed(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(_PARTS), action="append")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {name: _PARTS[name](arguments) for name in arguments.only or _PARTS}
    if arguments.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(name)
        for key, value in figures.items():
            print(f"  {key}: {value}")


if __name__ == "__main__":
    main()
