"""A rank of a real run that is slower by a known amount: the report names it, with that amount and what it costs.

Three processes train; the last one sleeps in its forwards, but in a few steps, which are the run without the delay.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import evenflow
from evenflow.cost import Costs, LayerCost, LinkCost
from evenflow.files import load_metrics, load_timelines, save_plan
from evenflow.search import equal_split, find_out, make_plan
from evenflow.spec import Batch
from evenflow.spec.cluster import local_cluster
from evenflow.timeline import Findings, Timeline, blames
from tests.faults.slowing import Slowed

pytestmark = pytest.mark.alone  # who is slow is told by seconds
RANKS, MICROBATCHES, STEPS = 3, 4, 10
SLOW = Slowed(rank=2, forward_s=0.015, backward_s=0.025, more_s=0.1, quick_steps=(1, 2, 4, 7, 10))


@dataclass(frozen=True)
class Run:
    """A run's folder, its two timelines, what a report finds, and the seconds of delay in the step that was drawn."""

    folder: Path
    predicted: Timeline
    measured: Timeline
    findings: Findings
    delay_s: float


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train by a plan that knows of the sleep that all ranks do, and of nothing else."""
    folder = tmp_path_factory.mktemp("slow")
    config = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 4, "vocab_size": 384, "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(config))
    (folder / "text.txt").write_text("".join(f"{number} squared is {number * number}\n" for number in range(800)))
    model = evenflow.describe(folder / "model", 1, 16)
    costs = Costs(
        layers=tuple(LayerCost(1e-5, 1e-5, 1e-5, 0.0, 1e-5, 1e-5) for _ in model.layers),
        stage_forward_s=SLOW.forward_s,
        stage_backward_s=SLOW.backward_s,
        link=LinkCost(1e-4, 1e9),
        reduce_s=1e-4,
        peak_flops=1e10,
        origin={"layers": "assumed", "link": "assumed", "optimizer": "assumed", "memory": "analytic"},
    )
    split = equal_split(len(model.layers), RANKS)
    cluster = replace(local_cluster(RANKS, 1), at_once=RANKS)  # who sleeps needs no core
    plan = make_plan(model, cluster, Batch(MICROBATCHES, 1, 16), costs, split=split)
    save_plan(plan, folder / "plan.json")
    options = ["--plan", folder / "plan.json", "--data", folder / "text.txt", "--out", folder / "run", "--no-check"]
    done = subprocess.run(
        [sys.executable, "-m", "evenflow", "train", folder / "model", *options, "--steps", str(STEPS)],
        env={**os.environ, **SLOW.environment(folder)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    timelines = load_timelines(folder / "run" / "timeline.json")
    assert timelines.measured is not None
    assert timelines.step not in SLOW.quick_steps
    found = find_out(plan, timelines.predicted, timelines.measured, with_schedules=False)
    slept = SLOW.slept(folder)
    assert len(slept) == STEPS - len(SLOW.quick_steps)
    return Run(folder, timelines.predicted, timelines.measured, found, slept[timelines.step])


def _goes_back(timeline: Timeline, rank: int, whose: int) -> float:
    return sum(one.seconds for one in blames(timeline)[rank] if (one.rank, one.cause) == (whose, "work"))


def test_the_slow_rank_and_no_other_is_a_straggler_by_its_delay(run: Run) -> None:
    (late, _), *others = run.findings.late
    assert (late.rank, others) == (SLOW.rank, [])
    assert late.late_s == pytest.approx(run.delay_s, rel=0.1)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_others_idle_goes_back_to_it_through_whomever_they_wait_for(run: Run, rank: int) -> None:
    """Rank 0 waits for rank 1 alone, which waits for rank 2."""
    most = blames(run.measured)[rank][0]
    assert (most.rank, most.cause, most.kind) == (SLOW.rank, "work", "F")
    longer = _goes_back(run.measured, rank, SLOW.rank) - _goes_back(run.predicted, rank, SLOW.rank)
    assert longer == pytest.approx(run.delay_s, rel=0.1)


def test_the_step_without_the_delay_is_what_steps_without_it_took(run: Run) -> None:
    then = run.findings.late[0][1]
    steps = {own.step: own.step_s for own in load_metrics(run.folder / "run" / "metrics.jsonl")}
    quick = median(steps[step] for step in SLOW.quick_steps[2:])  # without the first two, which warm up
    assert then.step_s == pytest.approx(quick, rel=0.1)
    assert then.now_s == pytest.approx(run.measured.step_s)
    assert run.findings.faster[0].rank == SLOW.rank


def test_each_ranks_step_is_accounted_for(run: Run) -> None:
    for own, found in zip(run.measured.ranks, blames(run.measured), strict=True):
        parts = own.busy_s + own.optimizer_s + sum(one.seconds for one in found)
        assert parts == pytest.approx(own.wall_s)


def test_memory_was_seen_after_each_action(run: Run) -> None:
    for own in run.measured.ranks:
        assert len(own.memory) == len(own.actions)
        assert 0 < max(own.memory) <= own.peak_bytes + 8 * 2**20


@pytest.mark.parametrize("options", [["--json"], []])
def test_the_report_says_so(run: Run, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from evenflow.cli import main

    page = run.folder / "report.html"
    assert main(["report", str(run.folder / "run"), "--html", str(page), *options]) == 0
    out = capsys.readouterr().out
    says = "rank 2 is a straggler"
    if options:
        why: dict[str, Any] = json.loads(out)["why"]
        assert [own["rank"] for own in why["stragglers"]] == [SLOW.rank]
        assert says in why["advice"][0]
    else:
        assert says in out
    assert says in page.read_text()
    assert says in (run.folder / "run" / "report.html").read_text()
