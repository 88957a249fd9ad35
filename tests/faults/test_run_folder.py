"""Two runs at once, and what a dead one left: the folder is one run's, and says whose."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from evenflow.errors import InputError
from evenflow.train.folder import RunFolder
from evenflow.train.lock import LOCK, FolderLock


def child(does: Callable[[], int]) -> int:
    """A process that does something and leaves with what that returns; forked, since importing torch takes seconds."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(does())
        finally:
            os._exit(99)
    return pid


def holder(folder: Path) -> int:
    """A process that holds a folder's lock until it is killed."""
    heard, says = os.pipe()

    def hold() -> int:
        FolderLock(folder)
        os.write(says, b"held")
        time.sleep(600)
        return 0

    pid = child(hold)
    assert os.read(heard, 4) == b"held"
    return pid


def test_a_folder_in_use_is_refused_with_who_uses_it_and_a_dead_ones_is_not(tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "text"
    data.write_text("text")
    run.mkdir()
    other = holder(run)
    try:
        says = rf"run is in use: process {other} on '.*' \(since .*\) trains there; another --out"
        with pytest.raises(InputError, match=says), RunFolder(run, data, resume=False):
            pass
        (run / "metrics.jsonl").write_text("")
        for resume in (True, False):
            with pytest.raises(InputError, match=says), RunFolder(run, data, resume):
                pass
        assert (run / LOCK).exists()
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    with RunFolder(run, data, resume=True) as folder:
        assert folder.left_by is not None
        assert f"process {other} on " in folder.left_by
    assert not (run / LOCK).exists()


@pytest.mark.parametrize("left", [True, False], ids=["written", "empty"])
def test_a_lock_that_a_dead_run_left_in_an_empty_folder_keeps_nobody_out(tmp_path: Path, left: bool) -> None:
    data = tmp_path / "text"
    data.write_text("text")
    (tmp_path / "run").mkdir()
    facts = {"pid": 4, "host": "h", "since": "then"}
    (tmp_path / "run" / LOCK).write_text(json.dumps(facts) if left else "")
    with RunFolder(tmp_path / "run", data, resume=False) as folder:
        assert folder.left_by == ("process 4 on 'h' (since then)" if left else None)
        assert folder.unguarded is None
        held = json.loads((folder.path / LOCK).read_text())
        assert held.keys() == {"pid", "host", "since"}
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("name", [".lock", LOCK])
@pytest.mark.parametrize("resume", [True, False])
def test_a_file_of_somebody_elses_is_left_as_it_is(tmp_path: Path, name: str, resume: bool) -> None:
    run, data = tmp_path / "run", tmp_path / "text"
    data.write_text("text")
    run.mkdir()
    (run / name).write_text("precious")
    if name == LOCK or not resume:
        with pytest.raises(InputError, match=r"is not empty|is left alone"), RunFolder(run, data, resume):
            pass
    assert (run / name).read_text() == "precious"
    assert [path.name for path in run.iterdir()] == [name]


def test_a_refused_command_writes_nothing_where_it_looked(tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "text"
    data.write_text("text")
    run.mkdir()
    (run / "notes").write_text("mine")
    before = run.stat().st_mtime_ns
    with pytest.raises(InputError, match="is not empty"):
        RunFolder(run, data, resume=False)
    assert run.stat().st_mtime_ns == before


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    (tmp_path / "text").write_text("text")
    with RunFolder(tmp_path / "run", tmp_path / "text", resume=False) as folder:
        assert "has no locks (flock)" in (folder.unguarded or "")


def test_a_run_that_failed_early_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    data = tmp_path / "text"
    data.write_text("text")
    with suppress(ValueError), RunFolder(tmp_path / "new", data, resume=False) as folder:
        (folder.path / "tokens").mkdir()
        raise ValueError
    assert not (tmp_path / "new").exists()


def test_many_that_want_it_at_once_take_turns(tmp_path: Path) -> None:
    """Processes take and leave the lock, which removes its file; never do two have it."""

    def race() -> int:
        end, took = time.monotonic() + 1.5, 0
        while time.monotonic() < end:
            try:
                lock = FolderLock(tmp_path)
            except InputError:
                continue
            (tmp_path / "inside").mkdir()  # raises where another is inside
            (tmp_path / "inside").rmdir()
            lock.release()
            took += 1
        return 0 if took else 1

    racers = [child(race) for _ in range(3)]
    assert [os.waitstatus_to_exitcode(os.waitpid(racer, 0)[1]) for racer in racers] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match="cannot be written"):
        FolderLock(tmp_path / "run")
    assert (tmp_path / "victim").read_text() == "precious"
