"""The exported script: torch's own parser takes its schedule, and what it trains is what evenflow trains."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evenflow.cli import main
from evenflow.errors import ImpossibleError
from evenflow.export import export_plan
from evenflow.export.torch_script import needs_losses_in_order
from evenflow.files import load_metrics, load_plan, load_samples, save_plan
from evenflow.program import SCHEDULES, Backward, Forward
from evenflow.search import reschedule
from evenflow.train.sequences import Sequences
from evenflow.train.store import TokenStore
from tests.conftest import TINY_LLAMA
from tests.export.plans import plan_of

STEPS, SEQ_LENGTH = 3, 32


@dataclass(frozen=True)
class Trained:
    """What evenflow trained: model, tokens in the order of training, losses and norms of the steps."""

    model: Path
    plan: Path
    data: Path
    losses: list[float]
    norms: list[float]


def _train(folder: Path, **changes: object) -> Trained:
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**TINY_LLAMA, **changes})).save_pretrained(folder / "m")
    (folder / "t.txt").write_text("".join(f"line {n}: {n * n} is the square of {n}\n" for n in range(800)))
    options = f"--steps {STEPS} --seq-length {SEQ_LENGTH} --global-batch-size 8 --micro-batch-size 2 --processes 2"
    constant = "--lr 3e-3 --lr-schedule wsd --warm-up 0 --decay 0 --no-check"
    run = folder / "run"
    words = ["train", str(folder / "m"), "--data", str(folder / "t.txt"), "--out", str(run)]
    assert main([*words, *options.split(), *constant.split()]) == 0
    sequences = Sequences(TokenStore.open(run / "tokens"), SEQ_LENGTH, "stream", separate=False)
    samples = load_samples(run / "samples.jsonl")
    rows = [sequences.read(number).ids for step in sorted(samples) for number in samples[step]]
    np.save(folder / "ids.npy", np.stack(rows).astype(np.int32))
    metrics = load_metrics(run / "metrics.jsonl")
    return Trained(
        folder / "m",
        run / "plan.json",
        folder / "ids.npy",
        [own.loss for own in metrics],
        [own.grad_norm for own in metrics],
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return _train(tmp_path_factory.mktemp("trained"))


def _run(folder: Path, trained: Trained, processes: int, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}  # it needs nothing of evenflow
    words = ["--standalone", "--nproc-per-node", str(processes), str(folder / "train_torch.py"), *options]
    told = ["--model", str(trained.model), "--data", str(trained.data), "--steps", str(STEPS), "--lr", "3e-3"]
    return subprocess.run(
        [sys.executable, "-P", "-m", "torch.distributed.run", *words, *told],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=200,
    )


def _trains_alike(folder: Path, trained: Trained, processes: int) -> None:
    ended = _run(folder, trained, processes)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = re.findall(r"loss ([\d.]+)  norm ([\d.]+)", ended.stdout)
    assert [float(loss) for loss, _ in found] == pytest.approx(trained.losses, rel=1e-5)
    assert [float(norm) for _, norm in found] == pytest.approx(trained.norms, rel=1e-4)


def test_the_script_trains_to_the_same_losses_as_evenflow(trained: Trained, tmp_path: Path) -> None:
    assert main(["export", str(trained.plan), "--to", "torch", "--out", str(tmp_path)]) == 0
    assert trained.losses[-1] < trained.losses[0] - 0.1  # the updates show in what is compared
    _trains_alike(tmp_path, trained, 2)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["zb-v", pytest.param("interleaved", marks=pytest.mark.full)])
def test_schedules_that_torch_is_told_action_by_action(trained: Trained, tmp_path: Path, schedule: str) -> None:
    plan = reschedule(load_plan(trained.plan), schedule)
    save_plan(plan, tmp_path / "plan.json")
    assert main(["export", str(tmp_path / "plan.json"), "--to", "torch", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "schedule.csv").exists()
    _trains_alike(tmp_path, trained, 2)


@pytest.mark.full
@pytest.mark.slow
def test_replicas_tied_weights_and_recomputation(tmp_path: Path) -> None:
    trained = _train(tmp_path, tie_word_embeddings=True)
    words = ["plan", str(trained.model), "--pp", "2", "--dp", "2", "--zero", "1", "--recompute", "full"]
    words += ["--global-batch-size", "8", "--micro-batch-size", "2", "--seq-length", str(SEQ_LENGTH)]
    assert main([*words, "--cluster", "4xA100-80GB", "--out", str(tmp_path / "plan.json")]) == 0
    assert main(["export", str(tmp_path / "plan.json"), "--to", "torch", "--out", str(tmp_path)]) == 0
    _trains_alike(tmp_path, trained, 4)


def test_a_script_says_what_it_cannot_run(trained: Trained, tmp_path: Path) -> None:
    assert main(["export", str(trained.plan), "--to", "torch", "--out", str(tmp_path)]) == 0
    ended = _run(tmp_path, trained, 1)
    assert "the plan is for 2 processes" in ended.stderr
    assert "loss" not in ended.stdout


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name not in ("1f1b", "gpipe")])
def test_torch_reads_the_schedule(tmp_path: Path, schedule: str) -> None:
    """Its `_load_csv` takes each row, and its simulator of sends and receives comes to the end."""
    from torch.distributed.pipelining.schedules import _Action, _add_send_recv, _simulate_comms_compute

    plan = plan_of(schedule, blocks=14)
    (tmp_path / "schedule.csv").write_text(export_plan(plan, "torch").files["schedule.csv"])
    lines = (tmp_path / "schedule.csv").read_text().splitlines()
    rows = {rank: [_Action.from_str(cell) for cell in line.split(",")] for rank, line in enumerate(lines)}
    actions = _add_send_recv(rows, lambda stage: plan.stage_rank[stage], len(plan.stages))  # type: ignore[arg-type]
    _simulate_comms_compute(actions, lambda stage: plan.stage_rank[stage], len(plan.stages))
    words = [str(action) for own in actions.values() for action in own]
    for kind in ("F", "SEND_F", "RECV_F"):
        found = [word for word in words if re.fullmatch(rf"\d+{kind}\d+", word)]
        assert len(set(found)) == len(found) > 0
    forwards = [word for word in words if re.fullmatch(r"\d+F\d+", word)]
    assert len(forwards) == len(plan.stages) * plan.microbatches


def test_1f1b_and_gpipe_are_torchs_own_classes() -> None:
    for schedule, name in (("1f1b", "1F1B"), ("gpipe", "GPipe")):
        export = export_plan(plan_of(schedule), "torch")
        assert list(export.files) == ["train_torch.py"]
        assert f'SCHEDULE = "{name}"' in export.files["train_torch.py"]


def test_losses_out_of_order_are_refused() -> None:
    order = ((Forward(0, 0), Forward(0, 1), Backward(0, 1), Backward(0, 0)),)
    needs_losses_in_order(order, 1, "torch")
    with pytest.raises(ImpossibleError, match="losses of microbatches in their order"):
        needs_losses_in_order(((Forward(0, 1), Forward(0, 0), Backward(0, 1), Backward(0, 0)),), 1, "torch")


def test_what_the_script_cannot_hold_is_refused() -> None:
    assert any(
        "trains in fp32: it takes more" in note for note in export_plan(replace(plan_of(), dtype="bf16"), "torch").notes
    )
    with pytest.raises(ImpossibleError, match="has no tp here, and the plan has tp 2; tp 1 would do"):
        export_plan(plan_of(tp=2), "torch")
    with pytest.raises(ImpossibleError, match=r"llama-3\.1-8b is known by its dimensions alone"):
        export_plan(replace(plan_of(), source="llama-3.1-8b"), "torch")
    with pytest.raises(ImpossibleError, match="cannot recompute as the plan does"):
        export_plan(plan_of(recompute=("selective",) * 8), "torch")


def test_the_script_is_tidy(tmp_path: Path) -> None:
    """By the rules of this project's own code, docstrings of what is public aside."""
    path = tmp_path / "train_torch.py"
    path.write_text(export_plan(plan_of(blocks=40), "torch").files["train_torch.py"])
    ruff = [sys.executable, "-m", "ruff"]
    config = Path(__file__).parents[2] / "pyproject.toml"
    for words in (["check", "--extend-ignore", "D,ARG002"], ["format", "--check"]):
        ended = subprocess.run(
            [*ruff, *words, "--no-cache", "--config", str(config), str(path)], capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
