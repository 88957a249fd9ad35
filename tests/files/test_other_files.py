"""Why: profile, timelines and metrics must come back as they were, or be refused with one line."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from math import isnan, nan

import pytest

from evenflow.cost import LinkCost, RankCost, StageCost, StageMemory
from evenflow.errors import InputError, ProgramError
from evenflow.files import (
    RankProcess,
    StepTimelines,
    append_text,
    json_text,
    load_metrics,
    load_profile,
    load_ranks,
    load_timelines,
    metrics_line,
    model_json,
    profile_json,
    samples_line,
    save_profile,
    save_ranks,
    save_timelines,
    truncate_metrics,
    truncate_samples,
    write_json,
)
from evenflow.program import evaluation_program
from evenflow.search import plan_timeline
from evenflow.simulate import Hardware, simulate
from evenflow.timeline import idle_by_cause
from tests.files.samples import sample_metrics, sample_model, sample_plan, sample_profile, sample_timelines


def test_a_profile_comes_back_exactly(tmp_path):
    profile = sample_profile(sample_model())
    save_profile(profile, tmp_path / "profile.json")
    assert load_profile(tmp_path / "profile.json") == profile
    assert json.loads((tmp_path / "profile.json").read_text()) == profile_json(profile)


def test_a_profile_is_no_plan(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text('{"format_version": 6, "model": "m"}')
    with pytest.raises(InputError, match=r"profile\.json: fingerprint: is missing \(and \d+ more like it\)$"):
        load_profile(path)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_timelines_come_back_exactly(tmp_path, schedule):
    plan = replace(sample_plan(), schedule=schedule)
    predicted, measured = sample_timelines(plan)
    path = tmp_path / "timeline.json"
    save_timelines(path, predicted, measured, 7)
    assert load_timelines(path) == StepTimelines(predicted, measured, 7)
    save_timelines(path, predicted, None, None)
    assert load_timelines(path) == StepTimelines(predicted, None, None)


@pytest.mark.parametrize("stage_rank", [(0, 1), (0, 2)])
def test_a_timeline_of_an_evaluation_comes_back_with_its_overhead(tmp_path, stage_rank):
    """Also where a rank between has nothing to do."""
    program = evaluation_program(stage_rank, 3)
    ranks = [RankCost(0.0, 0.0)] * len(program.ranks)
    memory = [StageMemory(0, 10, 5, 0, 0, 3, 0, 0), StageMemory(0, 10, 5, 0, 3, 0, 0, 0)]
    stages = [StageCost(1.0, 2.0, 1.0, 1.0)] * 2
    timeline = simulate(program, Hardware(stages, ranks, LinkCost(0.5, 1e9), memory, overhead_s=0.25))
    save_timelines(tmp_path / "timeline.json", timeline, None, None)
    again = load_timelines(tmp_path / "timeline.json").predicted
    assert again == timeline
    assert again.program.forward_only
    assert idle_by_cause(again) == idle_by_cause(timeline)


def test_timelines_of_two_programs_are_not_saved_together(tmp_path):
    plan = sample_plan()
    other = plan_timeline(plan, "gpipe")
    with pytest.raises(ProgramError, match="not of the same program"):
        save_timelines(tmp_path / "timeline.json", plan_timeline(plan), other, 1)
    assert not list(tmp_path.iterdir())


def _first_rank(data):
    return data["measured"]["ranks"][0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: _first_rank(data)["events"]["start_s"].pop(), "measured.ranks.0.events.start_s: has "),
        (lambda data: _first_rank(data)["memory"].append(1), "measured.ranks.0.memory: has 1 entries"),
        (
            lambda data: _first_rank(data).update(end_s=0.0),
            "measured.ranks.0.end_s: 0.0 is not after begin_s",
        ),
        (lambda data: data["predicted"]["ranks"].pop(), "predicted.ranks: has 3 ranks, but by stage_rank"),
        (
            lambda data: data["predicted"]["ranks"][1]["events"]["actions"].__setitem__(0, "0FREE3"),
            "predicted.ranks.1.events.actions: '0FREE3' is not an action",
        ),
        (
            lambda data: _first_rank(data)["events"]["end_s"].__setitem__(0, 0.0),
            "measured.ranks.0.events.end_s.0: 0.0 is before its start_s, 1234.5",
        ),
        (lambda data: data.update(tied=[[0, 4]]), "tied.0.1: is 4; stages go from 0 to 3"),
        (lambda data: data.update(microbatches=10**9), "microbatches: should be less than or equal to 100000"),
        (
            lambda data: data["predicted"]["ranks"][0]["events"]["actions"].__setitem__(0, "0F5"),
            "predicted: rank 0: ",
        ),
    ],
)
def test_a_broken_timeline_is_named(tmp_path, change, said):
    path = tmp_path / "timeline.json"
    save_timelines(path, *sample_timelines(sample_plan()), 1)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError) as caught:
        load_timelines(path)
    assert str(caught.value).startswith(f"{path}: {said}")


def test_a_profile_whose_layers_take_no_time_is_refused(tmp_path):
    data = profile_json(sample_profile(sample_model()))
    for layer in data["layers"]:
        layer["forward_s"] = 0
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"profile\.json: layers: all forward_s together are 0 s; 1e-12 or more"):
        load_profile(path)


def test_a_metrics_line_has_the_promised_keys():
    line = metrics_line(sample_metrics(1)[0])
    assert "\n" not in line
    assert list(json.loads(line)) == [
        "step",
        "loss",
        "grad_norm",
        "lr",
        "tokens",
        "tokens_per_s",
        "step_s",
        "idle_fraction",
        "imbalance",
        "mfu",
        "peak_bytes",
    ]


def test_metrics_come_back_and_are_cut_for_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    steps = sample_metrics(5)
    for own in steps:
        append_text(path, metrics_line(own) + "\n")
    assert load_metrics(path) == steps
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # what a killed run leaves
    assert load_metrics(path) == steps
    truncate_metrics(path, 3)
    append_text(path, metrics_line(steps[3]) + "\n")
    assert load_metrics(path) == steps[:4]


def test_a_ledger_of_any_length_is_cut_for_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr("evenflow.files.document._MOST_BYTES", 100)  # which no file of ours may have, but this one
    path = tmp_path / "samples.jsonl"
    for step in range(1, 21):
        append_text(path, samples_line(step, range(step)))
    whole = path.read_text()
    with path.open("a") as file:
        file.write('{"step": 21, "sam')  # what a killed run was writing
    truncate_samples(path, 20)
    assert path.read_text() == whole
    truncate_samples(path, 7)
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:7])
    path.write_text('{"step": "one"}\n')
    with pytest.raises(InputError, match=r"samples\.jsonl: line 1: step"):
        truncate_samples(path, 7)


def test_a_diverged_loss_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_text(path, metrics_line(replace(sample_metrics(1)[0], loss=nan, grad_norm=float("inf"))) + "\n")
    assert json.loads(path.read_text())["loss"] is None
    assert isnan(load_metrics(path)[0].loss)
    assert isnan(load_metrics(path)[0].grad_norm)


def test_a_wrong_metrics_line_is_named_by_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = metrics_line(sample_metrics(1)[0])
    path.write_text(f"{good}\n{good.replace('1.5', '[]')}\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2: grad_norm: should be a valid number, not a list"):
        load_metrics(path)


def test_ranks_come_back_as_a_plain_list(tmp_path):
    ranks = (RankProcess(0, 4242, "here"), RankProcess(1, 4243, "there"))
    path = tmp_path / "ranks.json"
    save_ranks(ranks, path)
    assert json.loads(path.read_text())[1] == {"rank": 1, "pid": 4243, "host": "there"}
    assert load_ranks(path) == ranks
    path.write_text('[{"rank": 0, "pid": "x", "host": "h"}]')
    with pytest.raises(InputError, match=r'ranks\.json: entry 0: pid: should be a valid integer, not "x"'):
        load_ranks(path)


def test_the_model_sums_its_layers():
    data = model_json(sample_model())
    assert data["format_version"] == 6
    assert data["parameters"] == 2 * 8_000_000 + 8 * 1_500_000
    assert data["parameter_bytes"] == 4 * data["parameters"]
    assert data["forward_flops"] == 8 * 400_000_000 + 2_000_000_000
    assert data["backward_flops"] == 2 * data["forward_flops"]
    assert [layer["kind"] for layer in data["layers"]] == ["embedding", *["block"] * 8, "head"]
    assert data["layers"][1]["forward_flops"] == 400_000_000
    assert json.loads(json_text(data)) == data


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    write_json(path, {"old": 1})

    def full(_handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"new": 2})
    assert [own.name for own in tmp_path.iterdir()] == ["plan.json"]
    assert json.loads(path.read_text()) == {"old": 1}


def test_a_place_that_cannot_be_written_to(tmp_path):
    with pytest.raises(InputError, match=r"no/plan\.json: cannot be written: .*; the folder .*no would have to exist"):
        write_json(tmp_path / "no" / "plan.json", {})
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        write_json(tmp_path, {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "nan.json", {"a": nan})


@pytest.mark.parametrize(
    "data",
    [{}, [], 1, {"a": [1, 2.5], "b": {"c": []}}, {"long": list(range(300))}, [["x" * 200], {"y": None}]],
)
def test_indented_json_says_the_same(data):
    assert json.loads(json_text(data)) == data
    assert json.loads(json_text(data, indented=False)) == data
