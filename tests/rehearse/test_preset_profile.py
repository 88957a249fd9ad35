"""Ranks of a preset's plan make a profile that the preset is planned with: layers get what stages took, and a plan like
the one that was rehearsed predicts what was rehearsed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import evenflow
from evenflow.cli import main
from evenflow.cost import Profile, RankCost, StageCost
from evenflow.files import load_plan, load_profile, profile_json, save_profile
from evenflow.models import preset_source
from evenflow.plan import Plan
from evenflow.program import WeightBackward, plan_program
from evenflow.rehearse import Rehearsed, check_model, rehearsed_plan, rehearsed_profile
from evenflow.search import plan_timeline
from evenflow.spec.presets import PRESETS

NAME = "llama-2-7b"
SMALL = {"layers": 6, "hidden": 64, "ffn": 128, "heads": 4, "kv_heads": 4, "head_dim": 16, "vocab": 500}
FACTORS = {"embedding": 7.0, "block": 2.0, "head": 3.0}  # times the planned seconds


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, NAME, replace(PRESETS[NAME], **SMALL))


def make_plan(path: Path, *options: object, devices: int = 8, shape: tuple[int, ...] = (2, 64)) -> Plan:
    command = [
        "plan",
        NAME,
        "--cluster",
        f"1x{devices}xH100-80GB",
        "--global-batch-size",
        16,
        "--seq-length",
        shape[-1],
    ]
    command += ["--micro-batch-size", shape[0]] if len(shape) > 1 else []
    assert main([str(own) for own in (*command, *options, "--out", path, "--json")]) == 0
    return load_plan(path)


def _kind(plan: Plan, layer: int) -> str:
    return "embedding" if layer == 0 else "head" if layer == len(plan.layers) - 1 else "block"


def took(plan: Plan) -> dict[int, Rehearsed]:
    """Ranks on which each layer takes its kind's factor times what is planned."""
    found = {}
    for rank in plan.ranks:
        halves = any(isinstance(action, WeightBackward) for action in plan_program(plan).ranks[rank.rank])
        stages = []
        for stage in rank.stages:
            sums = {
                name: sum(
                    FACTORS[_kind(plan, layer)] * getattr(plan.layers[layer].cost, name)
                    for layer in plan.stages[stage].layers
                )
                for name in StageCost.__slots__
            }
            sums |= {"backward_s": 0.0} if halves else {"input_s": 0.0, "weight_s": 0.0}
            stages.append(StageCost(**sums))
        once = RankCost(norm_s=0.5, optimizer_s=1.0)
        found[rank.rank] = Rehearsed(rank.rank, "cpu", 1.0, 1, tuple(stages), once)
    return found


def make_profile(plan: Plan) -> Profile:
    return rehearsed_profile(plan, check_model(plan, preset_source(NAME)), took(plan), PRESETS[NAME])


def test_the_plan_predicts_what_ranks_took_when_they_were_rehearsed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer a rank, so that there is one split; tp and microbatch are the profile's."""
    monkeypatch.setitem(PRESETS, NAME, replace(PRESETS[NAME], layers=1))
    path, profile = tmp_path / "plan.json", tmp_path / "profile.json"
    make_plan(path, "--pp", 3, "--schedule", "1f1b", devices=3)
    capfd.readouterr()
    assert main(["rehearse", str(path), "--all", "--steps", "1", "--out", str(profile), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    options = ["--pp", 3, "--schedule", "1f1b", "--profile", profile]
    again = make_plan(tmp_path / "again.json", *options, devices=3, shape=(64,))
    assert again.micro_batch_size == 2
    for own, rank in zip(found["ranks"], again.ranks, strict=True):
        assert rank.busy_s == pytest.approx(own["measured"]["compute_s"], rel=1e-6)
    assert plan_timeline(again).ranks[1].busy_s == pytest.approx(again.ranks[1].busy_s)
    origins = {name: again.costs[name] for name in ("layers", "halves", "optimizer", "memory")}
    assert origins == {"layers": "measured", "halves": "analytic", "optimizer": "measured", "memory": "analytic"}
    assert again.costs["link"] != "measured"
    assert "ranks rehearsed on cpu in bf16" in again.notes[0]
    assert "at tp 1 and microbatches of 2 x 64" in again.notes[0]


CASES = [("1f1b", "none"), ("1f1b", "full"), ("zb-h1", "none"), ("zb-h1", "full"), ("interleaved", "none")]


@pytest.mark.parametrize(("schedule", "recompute"), CASES)
def test_layers_get_what_is_theirs_of_what_stages_took(tmp_path: Path, schedule: str, recompute: str) -> None:
    """The blocks of the last rank do not pay for the head."""
    options = ["--pp", 4, "--schedule", schedule, "--recompute", recompute]
    plan = make_plan(tmp_path / "plan.json", *options, devices=4)
    assert schedule == "interleaved" or len(plan.stages[-1].layers) > 1, "or this test says nothing"
    base = make_plan(tmp_path / "base.json", *options[:-1], "none", devices=4)
    profile = make_profile(plan)
    for number, (layer, planned) in enumerate(zip(profile.layers, base.layers, strict=True)):
        by = FACTORS[_kind(plan, number)]
        for name in StageCost.__slots__:
            assert getattr(layer, name) == pytest.approx(by * getattr(planned.cost, name)), (number, name)
        assert layer.recompute_s == pytest.approx(by * planned.cost.recompute_s)
    assert profile.costs().origin["halves"] == ("measured" if schedule == "zb-h1" else "analytic")


@pytest.mark.parametrize(("schedule", "recompute"), CASES[:-1])
def test_every_rank_of_the_new_plan_is_as_busy_as_the_rehearsed_one(
    tmp_path: Path, schedule: str, recompute: str
) -> None:
    options = ["--pp", 8, "--schedule", schedule, "--recompute", recompute]
    plan = make_plan(tmp_path / "plan.json", *options)
    whole = plan_timeline(rehearsed_plan(plan, check_model(plan, preset_source(NAME)), took(plan)))
    save_profile(make_profile(plan), tmp_path / "profile.json")
    again = make_plan(tmp_path / "again.json", *options, "--profile", tmp_path / "profile.json")
    for rank, rehearsed in zip(again.ranks, whole.ranks, strict=True):
        assert rank.busy_s == pytest.approx(rehearsed.busy_s)
        assert rank.cost.optimizer_s == pytest.approx(1.5), "norm and update"
    pins: dict[str, Any] = {"schedule": schedule, "recompute": recompute, "pp": 8}
    profile = load_profile(tmp_path / "profile.json")
    assert evenflow.plan(NAME, "1x8xH100-80GB", 16, 64, profile=profile, **pins).ranks == again.ranks
    assert plan.link == again.link
    assert [own.saved_bytes for own in plan.layers] == [own.saved_bytes for own in again.layers]


def test_noise_does_not_give_a_layer_less_than_nothing(tmp_path: Path) -> None:
    """Where the first rank happens to take less than its blocks take elsewhere, its embedding takes nothing."""
    plan = make_plan(tmp_path / "plan.json", "--pp", 4, "--schedule", "1f1b", devices=4)
    assert len(plan.stages[0].layers) > 1, "or this test says nothing"
    found = took(plan)
    first = found[0].stages[0]
    less = replace(first, forward_s=first.forward_s / 2, backward_s=first.backward_s / 2)
    found[0] = replace(found[0], stages=(less,))
    profile = rehearsed_profile(plan, check_model(plan, preset_source(NAME)), found, PRESETS[NAME])
    assert profile.layers[0].forward_s == 0
    assert all(layer.forward_s > 0 for layer in profile.layers[1:])


def test_a_share_of_an_update_makes_a_whole_one(tmp_path: Path) -> None:
    """Under ZeRO 1 a rank updates its share alone."""
    plan = make_plan(tmp_path / "plan.json", "--pp", 8, "--dp", 2, "--zero", 1, "--schedule", "1f1b", devices=16)
    profile = make_profile(plan)
    assert [layer.optimizer_s for layer in profile.layers] == pytest.approx([2.0] * 8)
    save_profile(profile, tmp_path / "profile.json")
    options = ["--pp", 8, "--schedule", "1f1b", "--profile", tmp_path / "profile.json"]
    shared = make_plan(tmp_path / "shared.json", *options, "--dp", 2, "--zero", 1, devices=16)
    assert shared.ranks[1].cost.optimizer_s == pytest.approx(1.5, rel=0.01), "and what others have updated"
    alone = make_plan(tmp_path / "alone.json", *options)
    assert alone.ranks[1].cost.optimizer_s == pytest.approx(2.5)


def _without_a_layer(data: dict[str, Any]) -> None:
    data["layers"].pop()


def _without_time(data: dict[str, Any]) -> None:
    for layer in data["layers"][1:-1]:
        layer.update(forward_s=0, input_s=0, weight_s=0)


def _as_traced(data: dict[str, Any]) -> None:
    data["rehearsal"] = None


@pytest.mark.parametrize(
    ("damage", "options", "said"),
    [
        (
            None,
            {"--tp": "2"},
            "--tp 2: the profile's layers were timed at 1, which says nothing of others; --tp 1 would",
        ),
        (None, {"--micro-batch-size": "4"}, "--micro-batch-size 4: the profile's layers were timed at 2"),
        (None, {"--cp": "2", "--for": "megatron"}, "for another trainer: it has evenflow, this plan megatron"),
        (None, {"--ep": "2"}, "--ep 2: the profile's layers were timed at 1"),
        (
            None,
            {"--seq-length": "128"},
            "for another sequence length: it has 64, this plan 128; --seq-length 64 would do",
        ),
        (None, {"--cluster": "1x8xA100-80GB"}, "for another device: it has H100-80GB, this plan A100-80GB"),
        (None, {"MODEL": "llama-2-13b"}, "for another preset: it has llama-2-7b, this plan llama-2-13b"),
        (_without_a_layer, {}, "for another number of layers: it has 7, this plan 8"),
        (lambda data: data.update(fingerprint="0"), {}, "for another preset (its dimensions): it has 0, this plan"),
        (_without_time, {}, "the profile's layers.1, a block, takes 0 s; 1e-12 or more would do"),
        (_as_traced, {}, "as traced, and llama-2-7b is a preset"),
        (lambda data: data["rehearsal"].update(tp=0), {}, "rehearsal.tp: should be greater than or equal to 1, not 0"),
        (
            lambda data: data["layers"][2].update(forward_s=-1),
            {},
            "layers.2.forward_s: should be greater than or equal",
        ),
    ],
)
def test_a_profile_of_something_else_is_one_line(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[dict[str, Any]], object] | None,
    options: dict[str, str],
    said: str,
) -> None:
    data = profile_json(make_profile(make_plan(tmp_path / "plan.json", "--pp", 8, "--schedule", "1f1b")))
    if damage:
        damage(data)
    (tmp_path / "profile.json").write_text(json.dumps(data))
    command = {"--cluster": "1x8xH100-80GB", "--global-batch-size": "16", "--seq-length": "64", **options}
    model = command.pop("MODEL", NAME)
    capfd.readouterr()
    flags = [word for pair in command.items() for word in pair]
    assert main(["plan", model, *flags, "--profile", str(tmp_path / "profile.json")]) == 2
    captured = capfd.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert captured.out == ""
    assert said in line


def test_a_model_that_is_traced_is_not_planned_with_it(
    make_model: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_profile(make_profile(make_plan(tmp_path / "plan.json", "--pp", 8, "--schedule", "1f1b")), tmp_path / "f.json")
    assert load_profile(tmp_path / "f.json").model == NAME
    capfd.readouterr()
    options = ["--cluster", "1x8xH100-80GB", "--seq-length", "64", "--micro-batch-size", "2", "--pp", "4", "--tp", "2"]
    assert main(["plan", str(make_model()), *options, "--profile", str(tmp_path / "f.json")]) == 2
    assert f"`evenflow plan {NAME} --profile` reads it" in capfd.readouterr().err


def test_a_plan_of_two_kinds_of_devices_has_no_profile_and_that_is_said_before_the_minutes_that_it_would_take(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = tmp_path / "mixed.toml"
    cluster.write_text(
        '[[nodes]]\ncount = 1\ndevices = 4\ndevice = "A100-80GB"\n'
        '[[nodes]]\ncount = 1\ndevices = 4\ndevice = "H100-80GB"\n'
    )
    path, profile = tmp_path / "plan.json", tmp_path / "profile.json"
    make_plan(path, "--cluster", cluster, "--pp", 8, "--schedule", "1f1b")
    monkeypatch.setattr("evenflow.rehearse.check_model", None)  # nothing is described, nothing run
    capfd.readouterr()
    assert main(["rehearse", str(path), "--all", "--out", str(profile)]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "a profile of one kind of device, and the ranks of" in line
    assert not profile.exists()


def test_a_plan_of_another_preset_is_not_rehearsed_as_this_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it has as many layers."""
    path = tmp_path / "plan.json"
    make_plan(path, "--pp", 8, "--schedule", "1f1b")
    monkeypatch.setitem(PRESETS, "llama-2-13b", replace(PRESETS["llama-2-13b"], **SMALL))
    capfd.readouterr()
    assert main(["rehearse", str(path), "--all", "--model", "llama-2-13b"]) == 2
    assert "the plan is for llama-2-7b (8 layers" in capfd.readouterr().err
