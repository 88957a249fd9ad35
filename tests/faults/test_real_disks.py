"""Disks that the kernel really makes read-only or broken while a run saves; only root can have them so."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pytest

import evenflow
from evenflow.files import load_metrics, load_samples
from evenflow.train import Job, RunResult
from tests.faults.conftest import STEPS, Hears, same_weights
from tests.faults.disks import as_root, bound, may_mount, read_only
from tests.faults.injection import Faults
from tests.faults.test_disks import Breaks, names, warnings

Whole = tuple[Job, RunResult]


@pytest.fixture(autouse=True)
def _may_mount(tmp_path: Path) -> None:
    if not may_mount(tmp_path):
        pytest.skip("mounting takes root")


class _Device:
    """A file system on a block device that can lose its far part, and get it back with all that was in it."""

    _STATUS, _SIZE_LIMIT, _GET, _SET = 232, 32, 0x4C05, 0x4C04  # struct loop_info64 of linux/loop.h

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self._size, image = folder, size, folder.with_suffix(".image")
        folder.mkdir()
        image.touch()
        os.truncate(image, size)
        self._thaw: Timer | None = None
        as_root("mkfs.ext2", "-q", "-F", "-b", 4096, image)
        self._loop = as_root("losetup", "--find", "--show", image)
        try:
            as_root("mount", self._loop, folder)
        except PermissionError:
            as_root("losetup", "--detach", self._loop)
            raise

    def lose(self) -> None:
        """From now on what is written beyond what was taken, and a little, is an error of the device."""
        os.sync()
        free = os.statvfs(self.folder)
        self._limit(self._size - free.f_bfree * free.f_bsize + (64 << 10))

    def find(self) -> None:
        """All of the device is there again."""
        self._limit(0)

    def hold(self, seconds: float) -> None:
        """Let whoever writes wait so long."""
        as_root("fsfreeze", "--freeze", self.folder)
        self._thaw = Timer(seconds, self._unfreeze)
        self._thaw.start()

    def _unfreeze(self) -> None:
        subprocess.run(["fsfreeze", "--unfreeze", str(self.folder)], check=False)

    def _limit(self, size: int) -> None:
        device = os.open(self._loop, os.O_RDWR)
        status = bytearray(self._STATUS)
        fcntl.ioctl(device, self._GET, status)
        struct.pack_into("Q", status, self._SIZE_LIMIT, size)
        fcntl.ioctl(device, self._SET, bytes(status))
        os.close(device)

    def close(self) -> None:
        """Give everything back."""
        if self._thaw is not None and self._thaw.is_alive():  # what waits for the disk would never end
            self._thaw.cancel()
            self._unfreeze()
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False)
        subprocess.run(["losetup", "--detach", self._loop], check=False)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[_Device]:
    try:
        own = _Device(tmp_path / "disk", 48 << 20)
    except PermissionError as error:
        pytest.skip(str(error))
    yield own
    own.close()


class _FailsAWhile(Hears):
    """Has the disk fail from when a first checkpoint is whole, until it is said that the next one is not."""

    def __init__(self, fails: Callable[[], object], works: Callable[[], object]) -> None:
        super().__init__()
        self._fails, self._works = fails, works

    def saved(self, checkpoint: Path, write_s: float, hash_s: float) -> None:
        super().saved(checkpoint, write_s, hash_s)
        if len(self.saves) == 1:
            self._fails()

    def said(self, text: str) -> None:
        super().said(text)
        if " is not saved: " in text:
            self._works()


def _goes_on(whole: Whole, faults: Faults, out: Path, hears: _FailsAWhile, error: str) -> None:
    """Every step is done, the failure is said once, and the checkpoint before stays."""
    job = whole[0]
    faults.pace(hears)
    evenflow.train(replace(job, out=out, keep_last=9), hears)
    assert len(hears.steps) == STEPS
    (failed,) = [line for line in warnings(hears) if "is not saved" in line]
    assert re.search(error, failed)
    assert re.search(r"the state after step 6 is not saved: .* tried again after step 9$", failed)
    assert names(out) == ["step-00000003", "step-00000009", "step-00000012"]
    assert same_weights(out, job.out)
    assert [own.step for own in load_metrics(out / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert load_samples(out / "samples.jsonl") == load_samples(job.out / "samples.jsonl")


@pytest.mark.parametrize("below", ["checkpoints", "."], ids=["checkpoints", "the whole run"])
def test_a_disk_that_the_kernel_makes_read_only_costs_no_step(
    whole: Whole, faults: Faults, tmp_path: Path, below: str
) -> None:
    out = tmp_path / "run"
    with ExitStack() as mounted:
        hears = _FailsAWhile(lambda: mounted.enter_context(read_only(out / below)), mounted.close)
        _goes_on(whole, faults, out, hears, "Read-only file system")


def test_a_device_that_the_kernel_cannot_write_to_costs_no_step(whole: Whole, faults: Faults, device: _Device) -> None:
    """An I/O error where a file's blocks are lost; where a folder's would be, the kernel calls it lack of memory."""
    hears = _FailsAWhile(device.lose, device.find)
    _goes_on(whole, faults, device.folder / "run", hears, "Input/output error|Cannot allocate memory")


@pytest.mark.alone  # three steps have to be done while the disk waits
def test_a_run_whose_numbers_are_none_waits_for_a_save_on_a_slow_disk(
    whole: Whole, faults: Faults, device: _Device, tmp_path: Path
) -> None:
    """That after step 3 is still being written when step 6 ends the run."""
    out = tmp_path / "run"
    (device.folder / "lost+found").rmdir()

    faults.plan(1, "backward", 22, "inf gradient", settles=False)
    with ExitStack() as mounted:

        def slows() -> None:
            (out / "checkpoints").mkdir()
            mounted.enter_context(bound(device.folder, out / "checkpoints"))
            device.hold(8.0)

        hears = Breaks({1: slows})
        with pytest.raises(evenflow.FaultError, match=r"^step 6 came to a loss of "):
            evenflow.train(replace(whole[0], out=out), hears)
        assert hears.steps[-1][1] == 6
        assert names(out) == ["step-00000003"]
        assert evenflow.train(replace(whole[0], out=out, resume=True)).metrics[0].step == 1


class _Waited(Breaks):
    """Has the disk work again once it is said that it is waited for."""

    def __init__(self, doings: dict[int, Callable[[], object]], works: Callable[[], object]) -> None:
        super().__init__(doings)
        self._works = works

    def said(self, text: str) -> None:
        super().said(text)
        if "goes on once it can be" in text:
            self._works()


def test_a_rank_that_is_lost_while_the_disk_is_read_only_is_started_again(
    whole: Whole, faults: Faults, tmp_path: Path
) -> None:
    """In step 7: the run waits until the steps after its newest checkpoint can be cut off its files."""
    job, out = whole[0], tmp_path / "run"
    faults.plan(1, "forward", 26, signal.SIGKILL)
    with ExitStack() as mounted:
        hears = _Waited({5: lambda: mounted.enter_context(read_only(out))}, mounted.close)
        faults.pace(hears)
        evenflow.train(replace(job, out=out), hears)
    assert hears.starting("warning: ")[-1].endswith(
        "metrics.jsonl: cannot be written: Read-only file system. Training goes on once it can be, within 600 s"
    )
    (restart,) = hears.starting("restart 1 of 3: ")
    assert "after step 3 " in restart
    assert same_weights(out, job.out)
    assert [own.step for own in load_metrics(out / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert load_samples(out / "samples.jsonl") == load_samples(job.out / "samples.jsonl")
