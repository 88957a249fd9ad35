"""Why: a plan for machines that nobody here has must come from one command, at once, and wrong wishes from one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evenflow.cli import main
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
