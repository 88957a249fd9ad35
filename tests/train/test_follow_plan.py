"""Which plans a run follows: one of this machine, and one of a cluster where torchrun started it on such devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evenflow.errors import InputError
from evenflow.files import load_plan, save_plan
from evenflow.models import find_model
from evenflow.spec.cluster import local_cluster
from evenflow.train import Job, planning
from evenflow.train.hosts import check_ranks
from evenflow.train.planning import choose_cluster, follow_plan, make_batch, plan_model


@pytest.fixture
def model(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture
def planned(model: Path, tmp_path: Path) -> Path:
    """A plan for two nodes of a GPU each, as `evenflow plan --cluster 2x1xA100-80GB` makes it."""
    cluster, axes = choose_cluster("2x1xA100-80GB", None, None, None)
    _, plan, _ = plan_model(find_model(str(model)), cluster, make_batch(4, 2, 32, axes), axes=axes)
    save_plan(plan, tmp_path / "plan.json")
    return tmp_path / "plan.json"


def computes_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine, with the driver's name of a GPU that it does not have."""
    cluster = local_cluster()
    own = replace(cluster, device=replace(cluster.device, name=name))
    monkeypatch.setattr(planning, "local_cluster", lambda: own)


def test_a_clusters_plan_runs_where_torchrun_started_it(
    model: Path, planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find_model(str(model))
    computes_on("NVIDIA A100-SXM4-80GB", monkeypatch)
    plan = follow_plan(planned, source, started=2)[1]
    assert (plan.cluster, plan.device, plan.axes.processes) == ("2x1xA100-80GB", "A100-80GB", 2)
    with pytest.raises(InputError, match=r"is a plan for 2x1xA100-80GB; .*`evenflow launch` writes the script"):
        follow_plan(planned, source)
    job = Job(model=str(model), data=model, out=model / "run", plan=planned)
    with pytest.raises(InputError, match="is for 2 processes, but torchrun started 4"):
        check_ranks(4, job, plan.axes.processes)


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-40GB", "NVIDIA H100 80GB HBM3", "cpu"])
def test_not_on_another_device(model: Path, planned: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    computes_on(name, monkeypatch)
    with pytest.raises(InputError, match=f"is a plan for A100-80GB; the ranks of this machine compute on {name}"):
        follow_plan(planned, find_model(str(model)), started=2)


@pytest.mark.parametrize(
    ("planned", "own", "same"),
    [
        ("H100-80GB", "NVIDIA H100 PCIe", True),
        ("H100-80GB", "NVIDIA H100 80GB HBM3", True),
        ("H100-96GB", "NVIDIA H100 80GB HBM3", False),
        ("H200", "NVIDIA H200", True),
        ("H200", "NVIDIA GH200 480GB", False),
        ("V100", "Tesla V100-SXM2-32GB", True),
        ("NVIDIA H200", "NVIDIA H200", True),
        ("cpu", "cpu", True),
        ("cpu", "NVIDIA H200", False),
    ],
)
def test_a_catalogues_name_against_the_drivers(planned: str, own: str, same: bool) -> None:
    assert planning._is_same_device(planned, own) == same


def test_a_plan_of_this_machine_is_followed_either_way(model: Path, planned: Path) -> None:
    here = local_cluster()
    save_plan(replace(load_plan(planned), cluster="local", device=here.device.name), planned)
    for started in (None, 2):
        assert follow_plan(planned, find_model(str(model)), started)[1].cluster == "local"
