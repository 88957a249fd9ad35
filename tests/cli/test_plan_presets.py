"""Why: a plan for machines that nobody here has must come from one command, at once, and wrong wishes from one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import evenflow
from evenflow.cli import main
from evenflow.errors import InputError
from evenflow.files import load_plan

LLAMA = ("plan", "llama-2-7b", "--cluster", "2x8xA100-80GB", "--global-batch-size", 64, "--seq-length", 4096)


def test_a_plan_is_made_written_read_and_simulated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert main([*map(str, LLAMA), "--json", "--out", str(file)]) == 0
    printed = json.loads(capsys.readouterr().out)
    plan = load_plan(file)
    assert printed == json.loads(file.read_text())
    axes = printed["axes"]
    assert axes["pp"] * axes["tp"] * axes["dp"] * axes["cp"] == 16
    assert printed["bound"]["step_s"] <= printed["predicted"]["step_s"]
    assert printed["search"]["considered"] > 100
    assert max(rank.peak_bytes for rank in plan.ranks) <= plan.memory_limit
    assert main(["simulate", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step_s"] == pytest.approx(printed["predicted"]["step_s"])
    assert main(["report", str(file)]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("command", [["simulate"], ["simulate", "--compare"], ["report"]])
def test_whatever_is_predicted_says_where_its_costs_come_from(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "plan.json"
    pins = ("--pp", 2, "--tp", 4, "--micro-batch-size", 1, "--schedule", "1f1b")
    assert main([*map(str, (*LLAMA, *pins)), "--out", str(file)]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("costs ")]
    assert len(said) == 1
    assert {"analytic", "analytic;", "assumed"} & {*said[0]}
    assert main([command[0], str(file), *command[1:]]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("costs ")] == said
    assert main([command[0], str(file), *command[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["costs"] == load_plan(file).costs


def test_a_plan_says_what_the_fullest_rank_takes_and_what_its_device_shows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    pins = ("--pp", 2, "--tp", 4, "--micro-batch-size", 1, "--schedule", "1f1b")
    command = list(map(str, (*LLAMA, *pins)))
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    memory, peaks = printed["memory"], [rank["peak_bytes"] for rank in printed["ranks"]]
    assert memory["worst_rank"] == peaks.index(max(peaks))
    assert memory["peak_bytes"] == max(peaks)
    for rank in printed["ranks"]:
        assert rank["reserved_bytes"] == pytest.approx(rank["peak_bytes"] * 1.08 + 2e9, abs=1)
    assert memory["reserved_bytes"] == printed["ranks"][memory["worst_rank"]]["reserved_bytes"] <= 80e9
    assert main(command) == 0
    shown_text = " ".join(capsys.readouterr().out.split())
    shown = [f"{size / 2**30:.3g}" for size in (memory["peak_bytes"], memory["reserved_bytes"])]
    said = f"{shown[0]} GiB allocated on rank {memory['worst_rank']}, the fullest; {shown[1]} GiB reserved"
    assert f"memory {said} (margin assumed) bound " in shown_text


def test_planning_a_preset_imports_no_torch() -> None:
    script = (
        "import sys; from evenflow.cli import main; "
        f"code = main({[*map(str, LLAMA), '--tp', '2', '--pp', '2']}); "
        "sys.exit(code or ('torch' in sys.modules or 'transformers' in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ("--cluster", "8xA100-80BG"), "device 'A100-80BG' is not in the catalogue; A100-80GB"),
        (2, ("--for", "megatorn"), "--for 'megatorn' is no trainer that plans are made for; megatron is the nearest"),
        (2, ("--tp", 3), "--tp 3 does not divide the query heads of llama-2-7b, 32; 2 or 4 would do"),
        (2, ("--cp", 2), "--cp 2: evenflow has no cp; 1, or --for megatron, torchtitan, would do"),
        (2, ("--for", "deepspeed", "--schedule", "zb-h1"), "deepspeed has no zb-h1; 1f1b would do"),
        (2, ("--cluster", "local"), "known by its dimensions alone"),
        (
            2,
            ("--pp", 3),
            "no layout of llama-2-7b uses all 16 devices (--pp 3; a global batch of 64); 12 of them would do",
        ),
        (2, ("--dtype", "fp32"), "--dtype fp32: presets are planned in bf16"),
        (4, ("--memory-limit", "1GiB"), "no plan fits: of"),
        (4, ("--pp", 1, "--tp", 1, "--recompute", "none", "--zero", 0), "--recompute auto needs less"),
    ],
)
def test_wrong_wishes_are_one_line(
    capfd: pytest.CaptureFixture[str], code: int, arguments: tuple[object, ...], message: str
) -> None:
    assert main([str(own) for own in (*LLAMA, *arguments)]) == code
    captured = capfd.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert message in captured.err


def test_a_plan_for_others_is_not_trained(
    capfd: pytest.CaptureFixture[str], make_model: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    assert main([*map(str, LLAMA), "--for", "megatron", "--out", str(file)]) == 0
    capfd.readouterr()
    code = main(["train", str(make_model()), "--data", str(text), "--out", str(tmp_path / "run"), "--plan", str(file)])
    assert code == 2
    assert "is a plan for megatron; `evenflow export` writes it for that" in capfd.readouterr().err


def test_a_model_that_is_not_known_is_told_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "gpt3-175", "--cluster", "8xA100-80GB"]) == 2
    assert "gpt3-175b" in capfd.readouterr().err


LAB = """
[[nodes]]
count = 1
devices = 2
device = "A100-80GB"
"""
SMALL = ("--global-batch-size", "8", "--seq-length", "32")


def test_a_model_is_planned_for_a_cluster_file_of_one_kind(
    capsys: pytest.CaptureFixture[str], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    file, model = tmp_path / "lab.toml", str(make_model())
    file.write_text(LAB)
    assert main(["plan", model, "--cluster", str(file), *SMALL, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert main(["plan", model, "--cluster", "2xA100-80GB", *SMALL, "--json"]) == 0
    short = json.loads(capsys.readouterr().out)
    assert printed["predicted"] == short["predicted"]
    file.write_text(LAB + LAB.replace("A100-80GB", "L4"))
    assert main(["plan", model, "--cluster", str(file), *SMALL]) == 2
    assert "has devices of several kinds (2 A100-80GB, 2 L4)" in one_line(capsys)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    return said


def test_a_directory_is_not_planned_for_other_trainers(
    capsys: pytest.CaptureFixture[str], make_model: Callable[..., Path]
) -> None:
    assert main(["plan", str(make_model()), "--cluster", "2xA100-80GB", *SMALL, "--for", "megatron"]) == 2
    said = one_line(capsys)
    assert "--for megatron is planned for presets" in said
    assert "`evenflow export --to megatron`" in said


def test_a_directory_is_planned_over_cp_and_not_run_so(
    capsys: pytest.CaptureFixture[str], make_model: Callable[..., Path], tmp_path: Path, text: Path
) -> None:
    model, file = str(make_model()), tmp_path / "plan.json"
    axes = ("--pp", "2", "--dp", "2", "--cp", "2")
    assert main(["plan", model, "--cluster", "8xA100-80GB", *SMALL, *axes, "--out", str(file)]) == 0
    assert "note       cp 2: predicted, and not run by `evenflow train`" in capsys.readouterr().out
    assert json.loads(file.read_text())["axes"] == {"pp": 2, "tp": 1, "dp": 2, "cp": 2, "ep": 1}
    assert main(["rehearse", str(file), "--rank", "0"]) == 2
    assert "the plan has cp 2, and evenflow's ranks" in one_line(capsys)
    plan = json.loads(file.read_text())
    file.write_text(json.dumps(plan | {"cluster": "local"}))
    run = ("--data", str(text), "--out", str(tmp_path / "run"), "--plan", str(file))
    assert main(["train", model, *run]) == 2
    assert "has cp 2 and ep 1; train runs pp, tp and dp, so 1 for both would do" in one_line(capsys)
    assert main(["simulate", str(file)]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cp", "2"), "--cp 2 is planned for devices of the catalogue, such as --cluster 8xA100-80GB, and this"),
        (("--ep", "2"), "--ep 2 is planned for devices of the catalogue"),
        (
            ("--cluster", "8xA100-80GB", "--ep", "2"),
            "--ep 2 shares out experts over dp x cp, which is 1; 1 would do, or more",
        ),
        (("--cluster", "8xA100-80GB", "--ep", "2", "--dp", "2"), "--ep 2: "),
        (("--cluster", "8xA100-80GB", "--cp", "3"), "--cp 3 does not divide 8 processes; 3 processes, or a multiple"),
    ],
)
def test_what_a_directory_is_not_planned_over_is_said(
    capsys: pytest.CaptureFixture[str], make_model: Callable[..., Path], options: tuple[str, ...], message: str
) -> None:
    assert main(["plan", str(make_model()), *SMALL, *options]) == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize("options", [("--tp", "2"), ("--dtype", "fp32"), ("--dtype", "bf16")])
def test_presets_are_described_whole_and_in_no_type(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert main(["describe", "llama-2-7b", *options]) == 2
    assert f"{' '.join(options)}: llama-2-7b is described by its dimensions" in one_line(capsys)


def test_commands_that_need_weights_say_what_a_preset_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "gpt3-175b"]) == 2
    assert "gpt3-175b is a preset, known by its dimensions alone: `evenflow plan`" in one_line(capsys)


def test_presets_are_planned_from_python_too() -> None:
    plan = evenflow.plan("llama-2-7b", "2x8xA100-80GB", 64, 4096, tp=2, pp=2)
    assert (plan.axes.tp, plan.axes.pp, plan.dtype) == (2, 2, "bf16")
    with pytest.raises(InputError, match="--dtype fp32"):
        evenflow.plan("llama-2-7b", "2x8xA100-80GB", 64, 4096, dtype="fp32")


def test_help_says_what_is_free_for_presets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for flag, end in (("--zero", "default 0"), ("--schedule", "default 1f1b"), ("--tp", "default 1")):
        assert f"({end}; for a preset: free)" in said, flag
    assert "(default none; for a preset: auto)" in said
    assert "for a preset: bf16)" in said
