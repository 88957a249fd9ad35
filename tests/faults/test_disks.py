"""Disks that are full, read-only, broken or slow, and kills while a checkpoint is written: no step is lost for it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from io import FileIO
from pathlib import Path

import pytest
import torch

import evenflow
from evenflow.files import StepMetrics, append_text, load_metrics, load_samples
from evenflow.train import Job, RunResult, recorder
from tests.faults.conftest import STEPS, Hears, same_weights
from tests.faults.injection import Faults
from tests.train.test_resume import tensors_of

Whole = tuple[Job, RunResult]


class Breaks(Hears):
    """Does something to the disk when a step is done."""

    def __init__(self, doings: dict[int, Callable[[], object]]) -> None:
        super().__init__()
        self.doings = doings

    def stepped(self, metrics: StepMetrics, steps: int) -> None:
        super().stepped(metrics, steps)
        self.doings.pop(metrics.step, lambda: None)()


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def warnings(hears: Hears) -> list[str]:
    return [line for line in hears.starting("warning: ") if "is slow: it takes" not in line]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_a_save_that_fails_costs_no_step(whole: Whole, faults: Faults, tmp_path: Path, number: int) -> None:
    """From the save after step 6 on the disk fails, and works again for that after step 12, the last."""
    job, _ = whole
    out = tmp_path / "run"
    hears = Breaks({4: lambda: faults.disk(number), 10: lambda: faults.disk(None)})
    faults.pace(hears)
    evenflow.train(replace(job, out=out, keep_last=9), hears)
    assert len(hears.steps) == STEPS
    (warning,) = warnings(hears)
    assert f"rank-{'0' if 'rank-0' in warning else '1'}.safetensors cannot be written: {os.strerror(number)}" in warning
    assert "the state after step 6 is not saved" in warning
    assert "Training goes on" in warning
    assert "tried again after step 9" in warning
    assert names(out) == ["step-00000003", "step-00000012"]
    assert same_weights(out, job.out)


def test_a_last_save_that_fails_is_a_fault_with_a_remedy(whole: Whole, faults: Faults, tmp_path: Path) -> None:
    job, _ = whole
    hears = Breaks({10: lambda: faults.disk(errno.ENOSPC)})
    faults.pace(hears)
    with pytest.raises(evenflow.FaultError, match=r"No space left on device, tried 3 times; with .* free .*--resume"):
        evenflow.train(replace(job, out=tmp_path / "run"), hears)
    assert names(tmp_path / "run")[-1] == "step-00000009"
    faults.disk(None)
    evenflow.train(replace(job, out=tmp_path / "run", resume=True))
    assert same_weights(tmp_path / "run", job.out)


def test_a_model_that_cannot_be_written_costs_no_state(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, hears = whole[0], Hears()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(import_module("evenflow.train.run"), "finish_model_folder", full)
        with pytest.raises(evenflow.FaultError, match="model cannot be written: No space"):
            evenflow.train(replace(job, out=tmp_path / "run", stop_at=5), hears)
    assert names(tmp_path / "run")[-1] == "step-00000005"
    assert hears.starting("the state after step 5 is saved all the same")
    evenflow.train(replace(job, out=tmp_path / "run", resume=True))
    assert same_weights(tmp_path / "run", job.out)


def test_a_shard_of_the_model_that_cannot_be_written_costs_no_state(
    whole: Whole, faults: Faults, tmp_path: Path
) -> None:
    """By a rank itself, after all steps and with no checkpoint before: all there is is kept."""
    job, run = whole[0], tmp_path / "run"
    there = run / "model.partial" / "model-00002-of-00002.safetensors"
    hears = Breaks({2: lambda: there.mkdir(parents=True)})
    faults.pace(hears)
    with pytest.raises(evenflow.FaultError, match=r"model cannot be written: .*; once it can be"):
        evenflow.train(replace(job, out=run, save_every=None), hears)
    last = f"checkpoints/step-{STEPS:08d}"
    assert names(run) == [Path(last).name]
    ours, theirs = tensors_of(run / last), tensors_of(job.out / last)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB, which only root can make."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("a file system of its own takes root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(filler: Path) -> None:
    """Take all room that is left."""
    with filler.open("wb", buffering=0) as file:
        take_all_room(file)


def take_all_room(file: FileIO) -> None:
    with suppress(OSError):
        while file.write(bytes(4096)):
            pass


class KeepsFull(Hears):
    """Takes all room from the first checkpoint to the eighth step, what is freed meanwhile too, as other users do."""

    def __init__(self, filler: Path) -> None:
        super().__init__()
        self.filler = filler
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.fill)

    def fill(self) -> None:
        with self.filler.open("wb", buffering=0) as file:
            while not self.over.wait(0.001):
                take_all_room(file)

    def saved(self, checkpoint: Path, write_s: float, hash_s: float) -> None:
        super().saved(checkpoint, write_s, hash_s)
        if len(self.saves) == 1:
            self.thread.start()

    def stepped(self, metrics: StepMetrics, steps: int) -> None:
        super().stepped(metrics, steps)
        if metrics.step == 8:
            self.end()

    def end(self) -> None:
        """There is room again when this returns."""
        self.over.set()
        if self.thread.ident is not None:
            self.thread.join()
        self.filler.unlink(missing_ok=True)


def test_a_rank_that_is_lost_while_the_disk_is_full_is_started_again(
    whole: Whole, faults: Faults, small_disk: Path
) -> None:
    """In step 7, after a save that failed: neither a folder nor a file can be made for the ranks that are started."""
    job, out = whole[0], small_disk / "run"
    faults.plan(1, "forward", 26, signal.SIGKILL)
    hears = KeepsFull(small_disk / "filler")
    faults.pace(hears)
    try:
        evenflow.train(replace(job, out=out), hears)
    finally:
        hears.end()
    (restart,) = hears.starting("restart 1 of 3: ")
    assert "after step 3 " in restart
    said = warnings(hears)
    assert sum("ranks.json: cannot be written: No space left on device. Training goes on" in line for line in said) == 1
    assert same_weights(out, job.out)
    assert [own.step for own in load_metrics(out / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert load_samples(out / "samples.jsonl") == load_samples(job.out / "samples.jsonl")


def test_a_disk_that_is_really_full_and_then_is_not(whole: Whole, faults: Faults, small_disk: Path) -> None:
    job, _ = whole
    out, filler = small_disk / "run", small_disk / "filler"

    hears = Breaks({4: lambda: fill(filler), 8: filler.unlink})
    faults.pace(hears)
    evenflow.train(replace(job, out=out), hears)
    assert len(hears.steps) == STEPS
    said = warnings(hears)
    assert sum("is not saved" in line and "No space left" in line for line in said) == 1
    assert same_weights(out, job.out)
    assert [own.step for own in load_metrics(out / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert load_samples(out / "samples.jsonl") == load_samples(job.out / "samples.jsonl")


def test_lines_that_a_full_disk_does_not_take_are_written_later(
    whole: Whole, faults: Faults, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 5's lines and those after find a disk that is really full: each file is led to one for as long."""
    job, _ = whole
    out = job.out.parent / "lines"
    fill = small_disk / "filler"
    fill.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    full = False

    def append(path: Path, text: str) -> None:
        if full:  # a file on the full disk, with what the run's has so far
            append_text(small_disk / path.name, text)
        append_text(path, text)

    def turn(state: bool) -> Callable[[], None]:
        def now() -> None:
            nonlocal full
            full = state

        return now

    monkeypatch.setattr(recorder, "append_text", append)
    hears = Breaks({4: turn(True), 8: turn(False)})
    faults.pace(hears)
    evenflow.train(replace(job, out=out), hears)
    (warning,) = warnings(hears)
    assert "No space left on device. Training goes on; its lines are kept and written later" in warning
    assert [own.step for own in load_metrics(out / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert load_samples(out / "samples.jsonl") == load_samples(job.out / "samples.jsonl")


def test_a_line_that_a_disk_takes_in_part_is_not_there(small_disk: Path) -> None:
    path = small_disk / "lines"
    append_text(path, "whole\n")
    with (small_disk / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096 and shutil.disk_usage(small_disk).free > 4096:
            pass
    with pytest.raises(evenflow.FaultError, match="lines: cannot be written: No space left on device"):
        append_text(path, "x" * 20_000 + "\n")
    assert path.read_text() == "whole\n"


@pytest.mark.alone
def test_a_disk_slower_than_the_steps_holds_up_none_of_them(whole: Whole, faults: Faults, tmp_path: Path) -> None:
    """Rank 1's writer is held for long: later saves are left out by all ranks, once said, and the run ends well."""
    job, _ = whole
    faults.plan(1, "save", 1, "slow")
    hears = Hears()
    evenflow.train(replace(job, out=tmp_path / "run", keep_last=9), hears)
    (warning,) = warnings(hears)
    assert "the disk is slow: the one before is still being written" in warning
    assert names(tmp_path / "run") == ["step-00000003", "step-00000012"]
    assert same_weights(tmp_path / "run", job.out)
