"""A rank alone is the rank of a run: its tensors have the run's sizes, it does all its actions, and a whole step
follows from what ranks took."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evenflow.cli import main
from evenflow.cost import RankCost, StageCost
from evenflow.draw.words import origins_text
from evenflow.errors import InputError
from evenflow.files import load_plan, load_profile, save_plan
from evenflow.launch import ForkServer, unpack
from evenflow.models import describe_model, find_model
from evenflow.plan import Axes, Plan
from evenflow.program import plan_program
from evenflow.rehearse import (
    Rehearsed,
    distinct_ranks,
    predicted_compute_s,
    rehearse_rank,
    rehearsed_plan,
    rehearsed_profile,
)
from evenflow.rehearse.rehearsal import _payload, check_model
from evenflow.search import plan_timeline
from evenflow.spec import Cluster, Device
from evenflow.spec.architecture import Experts, Latent
from evenflow.spec.cluster import local_cluster
from evenflow.spec.presets import PRESETS
from evenflow.units import format_bytes

BIG = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "vocab_size": 2000}
SHAPE = ["--seq-length", 64, "--micro-batch-size", 2]


def make_plan(folder: Path, model: Path, *options: object) -> Path:
    path = folder / "plan.json"
    assert main([str(own) for own in ("plan", model, *SHAPE, *options, "--out", path, "--json")]) == 0
    return path


@pytest.mark.parametrize(
    "options",
    [
        ["--pp", 2, "--global-batch-size", 8],
        ["--pp", 2, "--global-batch-size", 8, "--schedule", "zb-h1"],
        ["--pp", 2, "--tp", 2, "--global-batch-size", 8],
        ["--pp", 2, "--dp", 2, "--zero", 1, "--global-batch-size", 8],
        ["--pp", 2, "--tp", 2, "--global-batch-size", 8, "--dtype", "bf16"],
    ],
    ids=["pp", "halves", "tp", "zero", "bf16 tp"],
)
def test_a_rank_alone_holds_what_the_plan_says(
    server: ForkServer, make_model: Callable[..., Path], tmp_path: Path, options: list[object]
) -> None:
    model = make_model(**BIG)
    path = make_plan(tmp_path, model, *options)
    plan, source = load_plan(path), find_model(str(model))
    described = check_model(plan, source)
    for rank in range(2):
        payload = _payload(path, source, described, rank, 2, local_cluster())
        group = server.start("bytes", "tests.rehearse.ranks:counts_its_bytes", 1, payload)
        (found,) = [item[1] for item in group.messages() if item is not None]
        assert found["spans"] == len(plan_program(plan).ranks[rank])
        assert found["peak"] == pytest.approx(plan.ranks[rank].peak_bytes, rel=0.05)
        block = next(shape for name, shape in found["shapes"].items() if name.endswith("mlp.up_proj.weight"))
        assert block == [384, 128], "a DTensor knows the whole shape"


def test_sizes_of_a_plan_for_hundreds_are_those_of_its_shards(
    server: ForkServer, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Rank 3 of 4 with tp 4 and dp 16: 256 processes, of which one runs."""
    model = make_model(**BIG, num_key_value_heads=4)
    options = ["--cluster", "32x8xH100-80GB", "--pp", 4, "--tp", 4, "--dp", 16, "--global-batch-size", 256]
    path = make_plan(tmp_path, model, *options)
    plan = load_plan(path)
    source = find_model(str(model))
    payload = _payload(path, source, check_model(plan, source), 3, 2, local_cluster())
    group = server.start("bytes", "tests.rehearse.ranks:counts_its_bytes", 1, payload)
    (found,) = [item[1] for item in group.messages() if item is not None]
    assert found["peak"] == pytest.approx(plan.ranks[3].peak_bytes, rel=0.05)


def test_one_rank_from_the_command_line(
    make_model: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = make_plan(tmp_path, make_model(), "--pp", 2, "--global-batch-size", 4)
    capfd.readouterr()
    assert main(["rehearse", str(path), "--rank", "1", "--steps", "1", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["rank"] == 1
    assert found["measured"].keys() == found["predicted"].keys() == {"compute_s", "peak_bytes"}
    assert found["measured"]["compute_s"] > 0
    assert found["measured"]["peak_bytes"] > 0
    assert found["predicted"]["peak_bytes"] == load_plan(path).ranks[1].peak_bytes
    assert "means nothing" in found["note"]
    assert found["costs"] == load_plan(path).costs
    assert main(["rehearse", str(path), "--rank", "0", "--steps", "1"]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "means nothing" in shown
    assert f" costs {origins_text(load_plan(path))} " in shown


def test_all_ranks_make_a_step_and_a_profile_that_plans(
    make_model: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_model(num_hidden_layers=6)
    path = make_plan(tmp_path, model, "--pp", 2, "--global-batch-size", 8)
    profile = tmp_path / "profile.json"
    capfd.readouterr()
    assert main(["rehearse", str(path), "--all", "--steps", "1", "--out", str(profile), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [own["rank"] for own in found["ranks"]] == [0, 1]
    assert found["step"]["measured_s"] >= max(own["measured"]["compute_s"] for own in found["ranks"])
    assert found["costs"] == load_plan(path).costs
    assert load_profile(profile).fingerprint == load_plan(path).fingerprint
    options = ["--pp", 2, "--global-batch-size", 8, "--profile", profile]
    again = load_plan(make_plan(tmp_path, model, *options))
    assert again.costs["layers"] == "measured"
    assert again.costs["link"] == "assumed", "nobody else was there to measure it with"


def _doubled(plan: Plan, rank: int, model: Any) -> Rehearsed:
    """A rank that takes twice what the plan says, sums over tp aside."""
    own = plan.ranks[rank]
    stages = [plan.stages[stage].cost for stage in own.stages]
    return Rehearsed(
        rank=rank,
        device="cpu",
        compute_s=2 * predicted_compute_s(plan, model, rank),
        peak_bytes=1,
        stages=tuple(StageCost(2 * it.forward_s, 2 * it.backward_s, 2 * it.input_s, 2 * it.weight_s) for it in stages),
        once=RankCost(2 * own.cost.norm_s, 2 * own.cost.optimizer_s),
    )


@pytest.mark.parametrize(
    ("recompute", "schedule"),
    [
        *(("none", "1f1b"), ("full", "zb-h1"), ("none", "interleaved")),
        *(pytest.param(*own, marks=pytest.mark.full) for own in (("full", "1f1b"), ("none", "zb-h1"))),
        pytest.param("full", "interleaved", marks=pytest.mark.full),
    ],
)
def test_a_profile_of_ranks_twice_as_slow_has_layers_twice_as_slow(
    make_model: Callable[..., Path], tmp_path: Path, schedule: str, recompute: str
) -> None:
    model = make_model(num_hidden_layers=6)
    options = ["--pp", 2, "--global-batch-size", 8, "--schedule", schedule, "--recompute", recompute]
    plan = load_plan(make_plan(tmp_path, model, *options))
    described = describe_model(find_model(str(model)), 2, 64)
    found = {rank: _doubled(plan, rank, described) for rank in range(2)}
    whole = plan_timeline(rehearsed_plan(plan, described, found))
    assert whole.ranks[0].busy_s == pytest.approx(2 * plan.ranks[0].busy_s)
    profile = rehearsed_profile(plan, described, found)
    base = load_plan(make_plan(tmp_path, model, *options[:-1], "none"))
    for layer, planned in zip(profile.layers, base.layers, strict=True):
        assert layer.forward_s == pytest.approx(2 * planned.cost.forward_s)
        assert layer.backward_s == pytest.approx(2 * planned.cost.backward_s)
        assert layer.input_s == pytest.approx(2 * planned.cost.input_s)
        assert layer.weight_s == pytest.approx(2 * planned.cost.weight_s)
        assert layer.optimizer_s == pytest.approx(2 * planned.cost.optimizer_s)


def test_ranks_that_do_the_same_are_rehearsed_once(make_model: Callable[..., Path], tmp_path: Path) -> None:
    """Under gpipe the ranks between the ends do the same; under 1f1b each holds another number of microbatches."""
    model = make_model(num_hidden_layers=8)
    same = load_plan(make_plan(tmp_path, model, "--pp", 5, "--global-batch-size", 8, "--schedule", "gpipe"))
    split = [len(stage.layers) for stage in same.stages]
    assert split[1:-1] == [2, 2, 2], "or this test says nothing"
    assert distinct_ranks(same) == {0: (0,), 1: (1, 2, 3), 4: (4,)}
    other = load_plan(make_plan(tmp_path, model, "--pp", 5, "--global-batch-size", 16))
    assert distinct_ranks(other) == {rank: (rank,) for rank in range(5)}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--rank", "2"], 2, "--rank 2: the plan has ranks 0 to 1"),
        (["--rank", "-1"], 2, "--rank -1: the plan has ranks 0 to 1"),
        ([], 2, "which rank to rehearse is missing; --rank R for one, or --all"),
        (["--all", "--rank", "0"], 2, "--rank and --all are both there"),
        (["--rank", "0", "--out", "f.json"], 2, "with --all it would work"),
        (["--all", "--out", "nowhere/f.json"], 2, "--out nowhere/f.json cannot be written; a file's path"),
        (["--all", "--out", "/"], 2, "--out / cannot be written; a file's path, in a folder that is there"),
        (["--rank", "0", "--model", "nowhere"], 2, "there is no model 'nowhere'"),
    ],
)
def test_wrong_input_is_one_line(
    make_model: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    said: str,
) -> None:
    path = make_plan(tmp_path, make_model(), "--pp", 2, "--global-batch-size", 4)
    assert _refused(capfd, code, path, *options).count(said) == 1


def test_a_plan_for_another_trainer_is_rehearsed_with_a_word(
    make_model: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_plan(tmp_path, make_model(), "--pp", 2, "--global-batch-size", 4)
    none = StageCost(0.0, 0.0, 0.0, 0.0)
    found = Rehearsed(0, "cpu", 0.1, 2**20, (none,), RankCost(0.0, 0.0))
    monkeypatch.setattr("evenflow.rehearse.rehearse_rank", lambda *_: found)
    for trainer in ("evenflow", "megatron"):
        save_plan(replace(load_plan(path), trainer=trainer), path)  # type: ignore[arg-type]
        capfd.readouterr()
        assert main(["rehearse", str(path), "--rank", "0", "--json"]) == 0
        note = json.loads(capfd.readouterr().out)["note"]
        assert ("the plan is for megatron, and what ran is evenflow's own trainer" in note) == (trainer == "megatron")


@pytest.mark.parametrize(
    ("axes", "has", "would"),
    [
        (Axes(pp=2, cp=4), "has cp 4, and", "--cp 1 would"),
        (Axes(pp=2, ep=2), "has ep 2, and", "--ep 1 would"),
        (Axes(pp=2, cp=2, ep=2), "has cp 2 and ep 2, and", "--cp 1 --ep 1 would"),
    ],
)
def test_axes_that_no_rank_runs_are_refused_before_anything_is_described(
    make_model: Callable[..., Path],
    tmp_path: Path,
    axes: Axes,
    has: str,
    would: str,
) -> None:
    path = make_plan(tmp_path, make_model(), "--pp", 2, "--global-batch-size", 4)
    plan = replace(load_plan(path), axes=axes, trainer="megatron")
    with pytest.raises(InputError) as refused:
        check_model(plan, None)  # type: ignore[arg-type]  # it is not looked at
    assert has in str(refused.value)
    assert would in str(refused.value)


SMALL = {"layers": 5, "hidden": 64, "ffn": 128, "heads": 4, "kv_heads": 4, "head_dim": 16, "vocab": 500}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "tp"),
    [
        ("bloom-176b", {"hidden": 256, "ffn": 1024, "head_dim": 64}, 2),
        ("gpt-oss-120b", {"experts": Experts(4, 2, 64), "window": 16}, 1),
        ("deepseek-v3", {"experts": Experts(4, 2, 64, 64, 3), "latent": Latent(32, 16, 16, 8, 16), "head_dim": 24}, 2),
    ],
)
def test_presets_of_every_kind_are_rehearsed(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    changes: dict[str, object],
    tp: int,
) -> None:
    """In small: what their blocks are made of is their own."""
    monkeypatch.setitem(PRESETS, name, replace(PRESETS[name], **{**SMALL, **changes}))
    path = tmp_path / "plan.json"
    command = ["plan", name, "--cluster", f"1x{2 * tp}xH100-80GB", "--pp", "2", "--tp", str(tp)]
    command += ["--micro-batch-size", "2", "--global-batch-size", "8", "--seq-length", "64", "--schedule", "1f1b"]
    assert main([*command, "--out", str(path), "--json"]) == 0
    capfd.readouterr()
    assert main(["rehearse", str(path), "--all", "--steps", "1", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [own["rank"] for own in found["ranks"]] == [0, 1]
    assert all(own["measured"]["compute_s"] > 0 for own in found["ranks"])
    whole = "as built, take" in found["note"]
    assert whole == (name == "deepseek-v3" and tp > 1), "its projections into latents are whole on each process"


def test_a_plan_that_cannot_be_rehearsed_is_one_line(
    make_model: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    path = make_plan(tmp_path, model, "--pp", 2, "--global-batch-size", 4)
    assert "there is no such file" in _refused(capfd, 2, tmp_path / "none.json", "--rank", "0")
    plan = load_plan(path)
    large = replace(plan, ranks=tuple(replace(own, peak_bytes=2**50) for own in plan.ranks), memory_limit=2**52)
    save_plan(large, tmp_path / "large.json")
    line = _refused(capfd, 4, tmp_path / "large.json", "--rank", "0")
    assert re.search(rf"rank 0 needs {format_bytes(2**50)}.*, and \S.* here has [\d.]+ [KMGT]iB", line)
    make_model(num_hidden_layers=5)
    assert "as it is now (7 layers" in _refused(capfd, 2, path, "--rank", "0")
    (model / "config.json").unlink()
    line = _refused(capfd, 2, path, "--rank", "0")
    assert "is a plan for tiny-llama, which is gone" in line
    assert "--model MODEL" in line


class _Told(Exception):
    """How a rehearsal would be run."""


class _Asked:
    """A launcher that runs nothing."""

    def running(self, name: str, target: str, ranks: int, payload: dict[str, Any], threads: int) -> Any:
        raise _Told(ranks, payload["shares_cores"])


@pytest.mark.parametrize(
    ("pp", "memory", "wanted"),
    [(2, 2**40, (2, False)), (4, 2**40, (4, True)), (4, 2**20, (2, False)), (1, 2**40, (1, False))],
    ids=["own cores", "taking turns", "too little memory for so many", "one"],
)
def test_as_many_rehearse_a_rank_as_will_share_the_cores(
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pp: int,
    memory: int,
    wanted: tuple[int, bool],
) -> None:
    """Of this machine's, here of two cores; a plan for other devices has one rank rehearsed by one process."""

    def two_cores(processes: int | None = None, threads: int | None = None) -> Cluster:
        count = processes or 2
        device = Device("cpu", memory // count, 64e9, 0.5, 2e9, 1e-4, "made up")
        return Cluster("local", device, count, threads or 1, min(count, 2), is_local=True)

    model = make_model()
    plan, source = load_plan(make_plan(tmp_path, model, "--pp", pp, "--global-batch-size", 8)), find_model(str(model))
    described = check_model(plan, source)
    small = replace(plan, ranks=tuple(replace(own, peak_bytes=2**19) for own in plan.ranks))
    monkeypatch.setattr("evenflow.rehearse.rehearsal.local_cluster", two_cores)
    with pytest.raises(_Told) as told:
        rehearse_rank(small, source, described, 0, launcher=_Asked())  # type: ignore[arg-type]
    assert told.value.args == wanted
    with pytest.raises(_Told) as told:
        rehearse_rank(replace(small, cluster="8xA100-80GB"), source, described, 0, launcher=_Asked())  # type: ignore[arg-type]
    assert told.value.args == (1, False)


@pytest.mark.parametrize("shares_cores", [True, False])
def test_a_rank_that_takes_turns_counts_its_own_time(
    server: ForkServer, make_model: Callable[..., Path], tmp_path: Path, shares_cores: bool
) -> None:
    """The processor's time of its process, which begins at nothing, and not that on the wall."""
    model = make_model()
    path = make_plan(tmp_path, model, "--pp", 2, "--global-batch-size", 4)
    source = find_model(str(model))
    payload = _payload(path, source, check_model(load_plan(path), source), 0, 0, local_cluster())
    began = time.perf_counter()
    group = server.start("rehearsal", "evenflow.rehearse.ranks:run", 1, {**payload, "shares_cores": shares_cores})
    steps = [unpack(item[1]["spans"]) for item in group.messages() if item is not None and item[1]["kind"] == "step"]
    assert len(steps) == 2
    for moments in steps:
        assert sorted(moments) == moments
        assert moments[-1] > moments[0]
        assert (moments[-1] < time.perf_counter() - began) == shares_cores


def test_a_rank_that_takes_turns_is_planned_on_cores_of_its_own(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """What is rehearsed is held against that, not against how long it is busy while others have its core."""
    model = make_model()
    plan = load_plan(make_plan(tmp_path, model, "--pp", 4, "--global-batch-size", 8))
    described = describe_model(find_model(str(model)), 2, 64)
    shared = replace(plan, at_once=1, ranks=tuple(replace(own, busy_s=99.0) for own in plan.ranks))
    for rank in range(4):
        cost = plan.stages[rank].cost
        alone = plan.microbatches * (cost.forward_s + cost.backward_s)
        assert predicted_compute_s(shared, described, rank) == pytest.approx(alone)


def _refused(capfd: pytest.CaptureFixture[str], code: int, path: Path, *options: str) -> str:
    capfd.readouterr()
    assert main(["rehearse", str(path), *options]) == code
    captured = capfd.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert captured.out == ""
    assert line.startswith("evenflow rehearse: ")
    return line
