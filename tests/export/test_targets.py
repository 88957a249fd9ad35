"""What all exports share: each reads back, and what does not is never handed over."""

from __future__ import annotations

import ast
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from evenflow.cli import main
from evenflow.errors import FaultError, ImpossibleError, InputError
from evenflow.export import TARGETS, export_plan
from evenflow.files import save_plan
from evenflow.files.cluster import read_cluster
from evenflow.search.layouts import LayoutRequest, Pins, plan_layout
from evenflow.spec.presets import PRESETS
from tests.export.plans import plan_of


@pytest.mark.parametrize("target", list(TARGETS))
def test_every_layer_is_read_back_once_on_its_rank(target: str) -> None:
    for ranks, blocks in ((4, 8), (3, 7), (1, 2)):
        plan = plan_of(ranks=ranks, blocks=blocks)
        split, where = TARGETS[target].read(export_plan(plan, target).files)
        assert [layer for stage in split for layer in stage] == list(range(blocks + 2))
        assert (split, where) == (plan.stage_layers, plan.stage_rank)


def test_an_export_that_reads_back_otherwise_is_not_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = TARGETS["megatron"]

    def drop_a_layer(plan: object) -> object:
        export = honest.make(plan)  # type: ignore[arg-type]
        return replace(export, files={name: text.replace("t*2", "t", 1) for name, text in export.files.items()})

    monkeypatch.setitem(TARGETS, "megatron", replace(honest, make=drop_a_layer))  # type: ignore[arg-type]
    with pytest.raises(FaultError, match="reads back as"):
        export_plan(plan_of(), "megatron")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "name",
    ['a"""\nopen("done", "w")\n"""', "b\n$(touch done)", "`touch done`", "c\\", "'; touch done; '", '"; touch done; "'],
)
def test_a_name_cannot_break_what_is_written(name: str, target: str, tmp_path: Path) -> None:
    """What is written is run by a shell, or read by Python: nothing of the name is done."""
    for path, text in export_plan(replace(plan_of(), model=name, source=name), target).files.items():
        (tmp_path / path).write_text(text)
        if path.endswith(".sh"):
            ran = subprocess.run(["bash", "-eu", path], cwd=tmp_path, capture_output=True, text=True, check=False)
            assert (ran.returncode, ran.stderr) == (0, "")
        elif path.endswith(".py"):
            calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
            assert not [call for call in calls if ast.unparse(call).startswith("open('done'")]
        elif path.endswith(".json"):
            json.loads(text)
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("target", TARGETS)
def test_which_rank_belongs_on_which_of_unequal_devices_is_said(target: str) -> None:
    """No file of any target has it: a rank on another device than it was planned for is slow, or does not fit."""
    plan = plan_of()
    assert "planned for one" not in " ".join(export_plan(plan, target).notes)
    slow = replace(plan, speeds=(1.0, 1.0, 0.42, 1.0))
    assert "ranks 0 to 1 are planned for ones of speed 1 that" in export_plan(slow, target).notes[-1]
    assert "rank 2 is planned for one of speed 0.42 that" in export_plan(slow, target).notes[-1]
    small = replace(plan, memory_limits=(8 * 2**30, 4 * 2**30, 8 * 2**30, 8 * 2**30))
    assert "rank 1 is planned for one of speed 1 that may use 4.00 GiB" in export_plan(small, target).notes[-1]
    alike = replace(plan, speeds=(1.0,) * 4, memory_limits=(2**30,) * 4)
    assert "planned for one" not in " ".join(export_plan(alike, target).notes)


def test_a_plan_for_a_cluster_of_two_kinds_says_who_is_whose(tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    file.write_text(
        '[[nodes]]\ncount = 1\ndevices = 8\ndevice = "H100-80GB"\n'
        '[[nodes]]\ncount = 1\ndevices = 8\ndevice = "A100-40GB"\n'
    )
    pins = Pins(pp=2, tp=8, cp=1, ep=1, micro_batch_size=1, schedule="1f1b")
    plan = plan_layout(LayoutRequest(PRESETS["llama-2-7b"], read_cluster(str(file)), 64, 2048, "megatron", pins))
    (note,) = (note for note in export_plan(plan, "megatron").notes if "is planned for" in note)
    assert plan.speeds is not None
    for rank in range(2):
        assert f"rank {rank} is planned for one of speed {plan.speeds[rank]:.3g} that may use " in note


def test_an_unknown_target() -> None:
    with pytest.raises(InputError, match="--to fairseq is not known; megatron, torchtitan, deepspeed, torch are"):
        export_plan(plan_of(), "fairseq")


def test_the_command_writes_prints_and_refuses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    save_plan(plan_of(), path)
    assert main(["export", str(path), "--to", "deepspeed", "--out", str(tmp_path / "a" / "b")]) == 0
    said = capfd.readouterr()
    assert {file.name for file in (tmp_path / "a" / "b").iterdir()} == {"evenflow_deepspeed.py", "ds_config.json"}
    assert "written: " in said.out
    assert "note: " in said.err
    assert main(["export", str(path), "--to", "megatron"]) == 0
    printed = capfd.readouterr().out
    assert main(["export", str(path), "--to", "megatron", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert list(found) == ["target", "files", "notes"]
    assert found["files"]["megatron_args.sh"] == printed

    save_plan(plan_of("zb-h1"), path)
    assert main(["export", str(path), "--to", "deepspeed"]) == 4
    assert capfd.readouterr().err.count("\n") == 1
    (tmp_path / "file").write_text("")
    save_plan(plan_of(), path)
    assert main(["export", str(path), "--to", "torch", "--out", str(tmp_path / "file")]) == 2
    assert main(["export", str(tmp_path / "none.json"), "--to", "torch"]) == 2


_REFUSED: dict[str, set[str]] = {  # as docs/export.md has it
    "megatron": set(),
    "torchtitan": set(),
    "deepspeed": {"cp", "ep", "selective"},
    "torch": {"cp", "ep", "selective", "preset"},
}


@pytest.mark.parametrize("target", TARGETS)
def test_the_documentations_table_is_true(target: str) -> None:
    plans = {
        "cp": plan_of(cp=2),
        "ep": plan_of(ep=2),
        "selective": plan_of(recompute=("selective",) * 8),
        "full": plan_of(recompute=("full",) * 8),
        "bf16": replace(plan_of(), dtype="bf16"),
        "preset": replace(plan_of(), model="gpt3-175b", source="gpt3-175b"),
    }
    refused = set()
    for what, plan in plans.items():
        try:
            export_plan(plan, target)
        except ImpossibleError:
            refused.add(what)
    assert refused == _REFUSED[target]
