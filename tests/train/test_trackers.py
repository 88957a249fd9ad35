"""Metrics in TensorBoard's and Weights & Biases' own files, as their own readers find them."""

from __future__ import annotations

import sys
from dataclasses import replace
from math import nan
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evenflow.errors import InputError
from evenflow.train import Job, Silent
from evenflow.train.trackers import scalars_of, tracked
from tests.files.samples import sample_metrics, sample_model, sample_plan


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "run").mkdir()
    return Job(model="m", data=Path("d"), out=tmp_path / "run", tensorboard=True)


def test_tensorboard_reads_every_step(job: Job) -> None:
    steps = sample_metrics(4)
    for half in (steps[:2], steps[2:]):  # a run and its resumption
        progress = tracked(job, Silent())
        progress.planned(sample_plan(), sample_model())
        for metrics in half:
            progress.stepped(metrics, 4)
        progress.closed()
    found = EventAccumulator(str(job.out / "tensorboard")).Reload()
    assert [(own.step, own.value) for own in found.Scalars("loss")] == [
        (own.step, pytest.approx(own.loss)) for own in steps
    ]
    tags = found.Tags()["scalars"]
    assert {"tokens_per_s", "mfu", "idle_fraction", "imbalance", "peak_bytes/0", "lr"} <= set(tags)


def test_weights_and_biases_has_one_run_over_a_resumption(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (1, 2):
        progress = tracked(replace(job, tensorboard=False, wandb="evenflow-tests"), Silent())
        progress.planned(sample_plan(), sample_model())
        progress.stepped(sample_metrics(2)[step - 1], 2)
        progress.closed()
    name = (job.out / "wandb.id").read_text().strip()
    written = list((job.out / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert written
    figures = (b"idle_fraction", b"tokens_per_s", b"imbalance")  # one may lie across two blocks of the file
    assert all(any(name in file.read_bytes() for name in figures) for file in written)


def test_no_login_is_one_line_with_what_would_do(job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import wandb

    wandb.teardown()  # it keeps the settings of its first run in the process
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    progress = tracked(replace(job, tensorboard=False, wandb="evenflow-tests"), Silent())
    with pytest.raises(InputError, match=r"^--wandb evenflow-tests: .*WANDB_MODE=offline") as found:
        progress.planned(sample_plan(), sample_model())
    assert "\n" not in str(found.value)


def test_numbers_that_are_none_are_left_out() -> None:
    metrics = replace(sample_metrics(1)[0], loss=nan)
    assert "loss" not in scalars_of(metrics)
    assert scalars_of(metrics)["step_s"] == metrics.step_s


def test_a_missing_package_is_named_with_its_extra(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"--wandb needs the package wandb.*evenflow\[wandb\]"):
        tracked(replace(job, wandb="p"), Silent())
    assert isinstance(tracked(replace(job, tensorboard=False), progress := Silent()), Silent)
    assert progress is not None
