"""Ranks' reports become one timeline on one clock, whatever their hosts' clocks show."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evenflow.files import load_timelines, save_timelines
from evenflow.launch import pack, unpack
from evenflow.plan import Axes
from evenflow.program import build_program
from evenflow.simulate import simulate
from evenflow.timeline import Timeline, idle_by_cause
from evenflow.train.recorder import Recorder
from tests.property.cases import equal_stages, hardware_of

PROGRAM = build_program("1f1b", 3, 4)
TRUE = simulate(PROGRAM, hardware_of(PROGRAM, equal_stages(3, 1.0, 2.0)))
START, END, STEPS = 100.0, 400.0, 8  # rank 0's clock at both comparisons
# Each rank's clock: rank 0's, times so much, plus so much.
CLOCKS = [(1.0, 0.0), (1.0 + 2e-5, 5000.0), (1.0 - 5e-5, -70.0)]


def shown(rank: int, moment: float) -> float:
    rate, ahead = CLOCKS[rank]
    return moment * rate + ahead


def report(rank: int, step: int) -> dict[str, Any]:
    begin = START + 30 * step
    own = TRUE.ranks[rank]
    spans = [shown(rank, begin + moment) for pair in zip(own.starts, own.ends, strict=True) for moment in pair]
    return {
        "step": step,
        "loss": 1.0,
        "grad_norm": 1.0,
        "lr": 0.1,
        "tokens": 32,
        "begin": shown(rank, begin + own.begin_s),
        "spans": pack(spans),
        "peak": 1,
        "memory": [],
    }


def record(folder: Path, comparisons: tuple[float, ...]) -> tuple[Recorder, Timeline]:
    predicted = SimpleNamespace(mfu=0.5, step_s=1.0)
    plan = SimpleNamespace(axes=Axes(pp=3), ranks=[None] * 3, global_batch_size=4, seq_length=8, predicted=predicted)
    recorder = Recorder(plan, PROGRAM, folder / "metrics.jsonl", folder / "samples.jsonl")
    first, *rest = comparisons
    for rank in range(3):
        recorder.take_clock(rank, clock(rank, first))
    for step in range(1, STEPS + 1):
        for rank in (1, 2, 0):
            recorder.take(rank, report(rank, step))
    for moment in rest:
        for rank in range(3):
            recorder.take_clock(rank, clock(rank, moment))
    typical = recorder.typical()
    assert typical is not None
    return recorder, typical[1]


def clock(rank: int, moment: float) -> dict[str, float]:
    there = shown(rank, moment)
    return {"at": there, "offset": moment - there, "error": 1e-5 * rank}


def test_drifting_clocks_are_brought_to_one(tmp_path: Path) -> None:
    _, timeline = record(tmp_path, (START, END))
    zero = min(own.begin_s for own in TRUE.ranks)
    for own, true in zip(timeline.ranks, TRUE.ranks, strict=True):
        assert own.starts == pytest.approx([moment - zero for moment in true.starts], abs=1e-9)
        assert own.ends == pytest.approx([moment - zero for moment in true.ends], abs=1e-9)
    for own, true in zip(idle_by_cause(timeline), idle_by_cause(TRUE), strict=True):
        for cause, seconds in true.items():
            assert own[cause] == pytest.approx(seconds, abs=1e-8)


def test_one_comparison_leaves_the_drift_and_none_leaves_the_clocks_apart(tmp_path: Path) -> None:
    """A run that failed has no second comparison: what its clocks drifted apart since the first stays."""
    _, once = record(tmp_path, (START,))
    drift = max(abs(one - true) for one, true in zip(once.ranks[2].starts, TRUE.ranks[2].starts, strict=True))
    assert 1e-4 < drift < 5e-5 * 400


def test_the_error_is_that_of_the_two_worst_and_is_kept_in_the_file(tmp_path: Path) -> None:
    _, timeline = record(tmp_path, (START, END))
    assert timeline.clock_error_s == pytest.approx(3e-5)
    save_timelines(tmp_path / "timeline.json", TRUE, timeline, 3)
    stored = load_timelines(tmp_path / "timeline.json")
    assert stored.measured is not None
    assert stored.measured.clock_error_s == timeline.clock_error_s
    assert stored.predicted.clock_error_s == 0.0


def test_metrics_need_no_common_clock(tmp_path: Path) -> None:
    """They are written while the run goes on, when only the first comparison is known."""
    recorder, _ = record(tmp_path, (START, END))
    assert [step.step_s for step in recorder.metrics] == pytest.approx([TRUE.step_s] * STEPS, rel=1e-4)
    assert [step.idle_fraction for step in recorder.metrics] == pytest.approx([TRUE.idle_fraction] * STEPS, rel=1e-4)


def test_a_step_that_did_not_look_at_memory_is_shown_with_what_was_seen_before(tmp_path: Path) -> None:
    predicted = SimpleNamespace(mfu=0.5, step_s=1.0)
    plan = SimpleNamespace(axes=Axes(pp=3), ranks=[None] * 3, global_batch_size=4, seq_length=8, predicted=predicted)
    recorder = Recorder(plan, PROGRAM, tmp_path / "metrics.jsonl", tmp_path / "samples.jsonl")
    for step in range(1, STEPS + 1):
        for rank in range(3):
            looked = [7] * len(TRUE.ranks[rank].actions) if step == 1 else []
            recorder.take(rank, {**report(rank, step), "memory": looked})
    found = recorder.typical()
    assert found is not None
    step, timeline = found
    assert step > 1
    assert all(set(rank.memory) == {7} for rank in timeline.ranks)


def test_of_replicas_the_slowest_is_kept_and_the_most_memory(tmp_path: Path) -> None:
    predicted = SimpleNamespace(mfu=0.5, step_s=1.0)
    plan = SimpleNamespace(axes=Axes(pp=3, dp=2), global_batch_size=4, seq_length=8, predicted=predicted)
    recorder = Recorder(plan, PROGRAM, tmp_path / "metrics.jsonl", tmp_path / "samples.jsonl")
    metrics = None
    for process in range(6):
        at = plan.axes.coordinates(process)
        own = report(at.pp, 1)
        spans = unpack(own["spans"])
        own["spans"] = pack(own["begin"] + (moment - own["begin"]) * (1 + at.dp) for moment in spans)
        own["peak"] = 10 * at.pp + (5 if at.dp == 0 else 1)
        metrics = recorder.take(process, own)
        assert (metrics is None) == (process < 5)
    assert metrics is not None
    assert metrics.peak_bytes == (5, 15, 25)
    quick = sum(rank.ends[-1] - rank.begin_s for rank in TRUE.ranks) / 3
    assert metrics.step_s == pytest.approx(2 * quick, rel=1e-3)
    assert metrics.tokens == 32


def test_the_newest_step_is_one_of_this_start(tmp_path: Path) -> None:
    """Or that which it goes on from, of whose lines some may have been lost."""
    recorder, _ = record(tmp_path, (START,))
    assert recorder.newest == STEPS
    resumed = Recorder(recorder.plan, PROGRAM, tmp_path / "metrics.jsonl", tmp_path / "samples.jsonl")
    assert resumed.newest == 0
    resumed.after, resumed.done_before = 6, 4
    resumed.metrics.extend(recorder.metrics[:4])
    assert resumed.newest == 6
    resumed.metrics.append(recorder.metrics[6])
    assert resumed.newest == 7
