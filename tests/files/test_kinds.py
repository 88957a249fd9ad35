"""A file of one kind in place of another's is told for what it is, with the command that reads it; a damaged one is
still read as its own kind, so that the error names its key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evenflow.cli import main
from evenflow.errors import InputError
from evenflow.files import (
    RankProcess,
    json_text,
    load_device,
    load_job,
    load_plan,
    load_profile,
    load_timelines,
    metrics_line,
    model_json,
    save_device,
    save_plan,
    save_profile,
    save_ranks,
    save_timelines,
)
from evenflow.files.cluster import load_cluster, read_cluster
from evenflow.files.kinds import (
    CLUSTER,
    CONFIG,
    DESCRIPTION,
    DEVICE,
    JOB,
    METRICS,
    PLAN,
    PROFILE,
    RANKS,
    TIMELINES,
    Kind,
    kind_of,
)
from evenflow.models import find_model
from evenflow.spec.accelerators import ACCELERATORS
from tests.files.samples import sample_metrics, sample_model, sample_plan, sample_profile, sample_timelines

CLUSTER_TEXT = '[[nodes]]\ncount = 2\ndevices = 8\ndevice = "A100-80GB"\n'
JOB_TEXT = 'data = "text.txt"\nout = "run"\nsteps = 3\n'


def _plan(path: Path) -> None:
    save_plan(sample_plan(), path)


def _timelines(path: Path) -> None:
    save_timelines(path, *sample_timelines(sample_plan()), 1)


WRITE: dict[str, tuple[Kind, Callable[[Path], object]]] = {
    "plan.json": (PLAN, _plan),
    "profile.json": (PROFILE, lambda path: save_profile(sample_profile(sample_model()), path)),
    "device.json": (DEVICE, lambda path: save_device(ACCELERATORS["A100-80GB"], path)),
    "timeline.json": (TIMELINES, _timelines),
    "config.json": (CONFIG, lambda path: path.write_text('{"model_type": "llama"}')),
    "described.json": (DESCRIPTION, lambda path: path.write_text(json_text(model_json(sample_model())))),
    "metrics.jsonl": (METRICS, lambda path: path.write_text(2 * (metrics_line(sample_metrics(1)[0]) + "\n"))),
    "ranks.json": (RANKS, lambda path: save_ranks([RankProcess(0, 42, "here")], path)),
    "cluster.toml": (CLUSTER, lambda path: path.write_text(CLUSTER_TEXT)),
    "job.toml": (JOB, lambda path: path.write_text(JOB_TEXT)),
}
READ: dict[str, tuple[Kind, Callable[[Path], object]]] = {
    "plan": (PLAN, load_plan),
    "profile": (PROFILE, load_profile),
    "device": (DEVICE, load_device),
    "timelines": (TIMELINES, load_timelines),
    "cluster": (CLUSTER, load_cluster),
    "job": (JOB, load_job),
}


@pytest.mark.parametrize("reader", READ)
@pytest.mark.parametrize("name", WRITE)
def test_every_file_is_read_as_itself_and_told_for_what_it_is_by_every_other_reader(
    name: str, reader: str, tmp_path: Path
) -> None:
    (kind, write), (wanted, read) = WRITE[name], READ[reader]
    path = tmp_path / name
    write(path)
    if kind is wanted:
        read(path)
        return
    with pytest.raises(InputError) as refused:
        read(path)
    assert str(refused.value) == f"{path}: is {kind.name}, not {wanted.name}; {kind.reader}"


def test_a_plan_is_told_where_a_cluster_or_a_model_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    _plan(path)
    with pytest.raises(InputError, match=r"plan\.json: is a plan, not a cluster; `evenflow simulate`"):
        read_cluster(str(path))
    with pytest.raises(InputError, match=r"plan\.json: is a plan, not a model's configuration; `evenflow simulate`"):
        find_model(str(path))
    with pytest.raises(InputError, match="is not understood"):
        read_cluster("9" * 5000 + ".toml.")


def test_a_damaged_plan_is_a_plan_still(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    _plan(path)
    data = json.loads(path.read_text())
    for key in sorted(PLAN.keys):
        path.write_text(json.dumps({own: value for own, value in data.items() if own != key}))
        with pytest.raises(InputError) as refused:
            load_plan(path)
        assert str(refused.value).startswith(f"{path}: {key}: is missing")


def test_what_is_nothing_of_ours_is_no_kind() -> None:
    for data in ({}, [], [1], "plan", None, {"axes": 1}, {"layers": []}):
        assert kind_of(data) is None


def test_a_runs_folder_has_the_plan_in_it(tmp_path: Path) -> None:
    _plan(tmp_path / "plan.json")
    with pytest.raises(InputError) as refused:
        load_plan(tmp_path)
    assert (
        str(refused.value) == f"{tmp_path}: is a folder, not a plan; {tmp_path / 'plan.json'}, which is in it, would do"
    )


@pytest.mark.parametrize("command", [["rehearse", "--all"], ["simulate"], ["report"], ["export", "--to", "megatron"]])
def test_commands_that_read_plans_say_who_reads_a_profile(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "profile.json"
    save_profile(sample_profile(sample_model()), path)
    capfd.readouterr()
    assert main([command[0], str(path), *command[1:]]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    expected = f"{path}: is a profile, not a plan; `evenflow plan MODEL --profile` reads it"
    assert captured.err.strip() == f"evenflow {command[0]}: {expected}"
