"""The commands as a script meets them: figures as one JSON object, tables for people, quick help."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evenflow.cli import COMMANDS, main
from evenflow.files import load_device

PLAN_KEYS = {
    "format_version", "model", "axes", "schedule", "micro_batch_size", "microbatches", "stages", "ranks",
    "predicted", "bound", "search", "costs",
}  # fmt: skip


@pytest.fixture
def run_json(capfd: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a command with --json; standard output must be one object and nothing else."""

    def run(*arguments: object) -> dict[str, Any]:
        assert main([*(str(argument) for argument in arguments), "--json"]) == 0
        parsed: dict[str, Any] = json.loads(capfd.readouterr().out)
        return parsed

    return run


def test_describe(run_json: Callable[..., Any], make_model: Callable[..., Path]) -> None:
    described = run_json("describe", make_model(), "--seq-length", 32)
    assert [layer["kind"] for layer in described["layers"]] == ["embedding", *["block"] * 4, "head"]
    assert all(layer["forward_flops"] > 0 for layer in described["layers"][1:])


def test_plan_keeps_its_contract(run_json: Callable[..., Any], make_model: Callable[..., Path]) -> None:
    plan = run_json("plan", make_model(), "--pp", 2, "--seq-length", 32)
    assert plan.keys() >= PLAN_KEYS
    assert [layer for stage in plan["stages"] for layer in stage["layers"]] == list(range(6))
    assert plan["predicted"]["step_s"] >= plan["bound"]["step_s"]
    assert plan["costs"]["layers"] == "analytic"


def test_plan_with_recomputation_is_followed(
    run_json: Callable[..., Any],
    make_model: Callable[..., Path],
    text: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "plan.json"
    shape = ["--seq-length", 32, "--global-batch-size", 4]
    none = run_json("plan", make_model(), "--pp", 2, *shape)
    full = run_json("plan", make_model(), "--pp", 2, *shape, "--recompute", "full", "--out", file)
    assert {own["recompute"] for own in none["layers"]} == {"none"}
    assert [own["recompute"] for own in full["layers"]] == ["none", *["full"] * 4, "none"]
    assert full["layers"][1]["backward_s"] > none["layers"][1]["backward_s"]
    assert full["layers"][0]["backward_s"] == none["layers"][0]["backward_s"]
    assert full["ranks"][0]["peak_bytes"] < none["ranks"][0]["peak_bytes"]
    assert full["predicted"]["step_s"] > none["predicted"]["step_s"]
    run = ["train", make_model(), "--data", text, "--steps", 2, "--plan", file, "--no-check"]
    assert main([*map(str, run), "--out", str(tmp_path / "refused"), "--recompute", "none"]) == 2
    assert "--recompute is none, but" in capfd.readouterr().err
    run_json(*run, "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["layers"][1]["recompute"] == "full"


def test_plan_simulate_and_report_agree(
    run_json: Callable[..., Any], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    plan = run_json("plan", make_model(), "--pp", 3, "--seq-length", 32, "--out", file)
    simulated = run_json("simulate", file)
    assert simulated["step_s"] == pytest.approx(plan["predicted"]["step_s"])
    for rank in simulated["ranks"]:
        wall = rank["busy_s"] + rank["optimizer_s"] + sum(rank["idle_s"].values())
        assert wall == pytest.approx(simulated["step_s"])
    assert run_json("simulate", file, "--schedule", "gpipe")["schedule"] == "gpipe"
    page, picture, trace = tmp_path / "page.html", tmp_path / "picture.svg", tmp_path / "trace.json"
    png = tmp_path / "picture.png"
    report = run_json("report", file, "--html", page, "--svg", picture, "--png", png, "--trace", trace)
    assert report["plan"] == plan
    assert png.read_bytes().startswith(b"\x89PNG")
    for rank in report["why"]["ranks"]:
        for idle in (rank["idle"], rank["goes_back_to"]):
            named = rank["busy_s"] + rank["optimizer_s"] + sum(one["seconds"] for one in idle)
            assert named == pytest.approx(rank["wall_s"])
    path = report["why"]["critical_path"]
    assert sum(part["seconds"] for part in path) == pytest.approx(path[-1]["start_s"] + path[-1]["seconds"])
    assert report["why"]["faster"][0]["gain"] > 0
    assert "Schedules compared" in page.read_text()
    assert '<script type="application/json" id="timeline">' in page.read_text()
    assert picture.read_text().startswith("<svg")
    assert {"0F0", "STEP"} <= {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}


def test_profile_then_plan_with_it(
    run_json: Callable[..., Any], make_model: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "profile.json"
    profile = run_json(
        "profile", make_model(), "--processes", 2, "--micro-batch-size", 2, "--seq-length", 32, "--out", file
    )
    assert all(layer["forward_s"] > 0 and layer["backward_s"] > 0 for layer in profile["layers"][1:])
    options = ["--pp", 2, "--micro-batch-size", 2, "--seq-length", 32, "--profile", file]
    plan = run_json("plan", make_model(), *options)
    assert plan["costs"]["layers"] == "measured"
    assert main([str(part) for part in ["plan", make_model(), *options, "--micro-batch-size", 4]]) == 2
    assert "the profile is for another microbatch" in capfd.readouterr().err


def test_this_machine_as_a_device_of_the_catalogue(
    run_json: Callable[..., Any], make_model: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "device.json"
    device = run_json("profile", "--device", "--processes", 2, "--out", file)
    assert load_device(file).half_flops == device["half_flops"] > 1e6
    assert {"single_flops", "memory_bytes_per_s", "node_bytes_per_s"} <= set(device["measured"])
    assert "eighth_flops" in set(device["assumed"]) - set(device["measured"]), "nobody timed it"
    assert "network_bytes_per_s" in device["assumed"]
    assert main(["profile"]) == 2
    assert "a MODEL, or --device for this machine, would do" in capfd.readouterr().err
    assert main(["profile", str(make_model()), "--device"]) == 2


def test_tables_for_people(make_model: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(make_model()), "--seq-length", "32"]) == 0
    assert "LlamaForCausalLM" in capfd.readouterr().out
    assert main(["plan", str(make_model()), "--pp", "2", "--seq-length", "32"]) == 0
    assert "bound" in capfd.readouterr().out


def test_check(run_json: Callable[..., Any], make_model: Callable[..., Path]) -> None:
    result = run_json("check", make_model())
    assert result["equal"]
    assert result["worst_error"] <= 1e-6


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_imports_no_torch(command: str) -> None:
    script = (
        "import sys; from evenflow.cli import main\n"
        "try: main([sys.argv[1], '--help'])\n"
        "except SystemExit as left: assert left.code == 0\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, command], check=True, stdout=subprocess.DEVNULL)


def test_version_and_bare_call() -> None:
    def text(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "evenflow.cli", *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout

    assert text("--version").startswith("evenflow 0.1.0")
    assert all(command in text() for command in COMMANDS)


def test_train_alone_and_its_report_are_json(
    run_json: Callable[..., Any], make_model: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = ["--pp", 1, "--schedule", "interleaved", "--stages-per-rank", 3, "--steps", 2, "--seq-length", 32]
    result = run_json("train", make_model(), "--data", text, "--out", out, *options)
    assert result["steps"] == 2
    assert result["comparison"]["idle_fraction"]["predicted"] == 0
    report = run_json("report", out, "--trace", out / "trace.json")
    assert report["comparison"]["step_s"]["measured"] > 0
    assert [stage["rank"] for stage in report["plan"]["stages"]] == [0, 0, 0]
    trace = json.loads((out / "trace.json").read_text())["traceEvents"]
    assert {event["pid"] for event in trace} == {1, 2}
