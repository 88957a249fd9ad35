"""What ranks had copied of a state, and not written when they were lost, becomes the checkpoint that it was to be."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evenflow.errors import FaultError, StoppedError
from evenflow.train import shards
from evenflow.train.attempt import Attempt
from evenflow.train.checkpoint import Checkpoints, RunState, Taken, newest_checkpoint, partial_folder
from evenflow.train.copies import Copy, LeftCopies
from evenflow.train.shards import Piece, saved_names

RANKS = 2


def state_of(rank: int, step: int) -> dict[str, Piece]:
    return {f"weight/{rank}": Piece.whole(torch.full((4, 3), float(step)))}


class Run:
    """The command's side of two ranks, and the ranks' copies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranks = [Copy() for _ in range(RANKS)]
        self.copies = LeftCopies()
        for rank, copy in enumerate(self.ranks):
            self.copies.open(rank, os.getpid(), {"descriptor": copy.descriptor, "shard": f"rank-{rank}.safetensors"})
        self.checkpoints = Checkpoints(folder, RANKS, lambda step: RunState("model", step, 0, {}), keep_last=2)

    def copied(self, *steps: int) -> None:
        for rank, (copy, step) in enumerate(zip(self.ranks, steps, strict=True)):
            copy.take(step, state_of(rank, step))

    def wrote(self, rank: int, step: int) -> Taken | None:
        folder = partial_folder(self.folder, step)
        folder.mkdir(parents=True, exist_ok=True)
        file = self.ranks[rank].write(folder / f"rank-{rank}.safetensors")
        return self.checkpoints.take(rank, {"step": step, "file": asdict(file)})

    def unfinished(self, heard: int = 99) -> int:
        return self.checkpoints.unfinished(self.copies, heard)

    def finish(self, step: int) -> Taken:
        return self.checkpoints.finish(step, self.copies, lambda: None)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_all_is_written_that_was_copied(run: Run) -> None:
    assert run.unfinished() == 0
    run.copied(6, 6)
    partial = partial_folder(run.folder, 6)
    partial.mkdir(parents=True)
    (partial / "rank-1.safetensors").write_bytes(b"half")  # as it was left
    assert run.unfinished() == 6
    assert run.finish(6) == Taken(6)
    run.checkpoints.publish(6)
    found = newest_checkpoint(run.folder)
    assert found is not None
    assert (found.state.step, found.passed_over) == (6, ())
    assert saved_names(found.folder) == {"weight/0", "weight/1"}
    assert run.unfinished() == 0


def test_what_a_rank_has_written_counts_while_it_copies_the_next_state(run: Run, monkeypatch: Any) -> None:
    run.copied(6, 6)
    assert run.wrote(0, 6) is None
    run.ranks[0]._note(0, 0)  # as it does first
    assert run.unfinished() == 6
    when = (partial_folder(run.folder, 6) / "rank-0.safetensors").stat().st_mtime_ns
    assert run.finish(6) == Taken(6)
    assert (run.checkpoints.publish(6) / "rank-0.safetensors").stat().st_mtime_ns == when


def test_states_of_different_steps_are_none(run: Run) -> None:
    run.copied(6, 3)
    assert run.unfinished() == 0
    assert run.wrote(0, 6) is None
    assert run.unfinished() == 0
    run.copied(9, 6)  # the first has told of its file, and has copied the next state
    assert run.unfinished() == 6


def test_one_that_not_all_have_told_of_is_none(run: Run) -> None:
    run.copied(6, 6)
    assert run.unfinished(heard=5) == 0
    assert run.unfinished(heard=6) == 6


def test_a_rank_that_could_not_write_has_its_copy(run: Run) -> None:
    run.copied(6, 6)
    run.checkpoints.take(0, {"step": 6, "why_not": "it is full"})
    run.wrote(1, 6)
    assert not partial_folder(run.folder, 6).exists()  # of what no rank has all of nothing stays
    run.checkpoints.take(0, {"step": 6, "why_not": "it is full"})  # and where the other has not told yet
    assert run.finish(run.unfinished()) == Taken(6)
    run.checkpoints.publish(6)


def test_a_disk_that_is_full_then_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write, writes = shards._write, iter(range(1))

    def full(file: FileIO, data: memoryview) -> None:
        if next(writes, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, data)

    run.copied(6, 6)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write", full)
        taken = run.finish(6)
    assert taken.why_not == (
        f"{partial_folder(run.folder, 6) / 'rank-1.safetensors'} cannot be written: No space left on device"
    )
    assert not partial_folder(run.folder, 6).exists()
    assert run.finish(run.unfinished()) == Taken(6)


def test_a_second_signal_ends_it(run: Run) -> None:
    def signalled() -> None:
        raise StoppedError("stopped at once", 2)

    run.copied(6, 6)
    with pytest.raises(StoppedError):
        run.checkpoints.finish(6, run.copies, signalled)
    assert newest_checkpoint(run.folder) is None


def test_nothing_is_vouched_for_that_is_not_written() -> None:
    def full() -> None:
        raise FaultError("no room")

    attempt: Any = Attempt.__new__(Attempt)
    attempt.recorder = SimpleNamespace(write=full, newest=6)
    attempt.checkpoints = None
    assert not attempt.finish_save()


def test_a_save_waits_for_the_steps_of_all() -> None:
    """One rank may tell that all is written before another one's line of that step is read."""
    told: list[tuple[int, bool]] = []
    attempt: Any = Attempt.__new__(Attempt)
    attempt._taken, attempt.recorder = [Taken(3), Taken(6)], SimpleNamespace(newest=2)
    attempt._saved = lambda taken: told.append((taken.step, True))
    attempt._save_heard()
    assert told == []
    attempt.recorder.newest = 5
    attempt._save_heard()
    assert told == [(3, True)]
    assert attempt._taken == [Taken(6)]
