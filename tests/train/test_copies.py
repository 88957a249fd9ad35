"""A copy of a rank's state is the file that it becomes, whoever writes it, and is nothing while it is being taken."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest
import torch

from evenflow.train import copies as copies_module
from evenflow.train.copies import Copy, LeftCopies
from evenflow.train.shards import Piece, WrittenFile, write_shard

STATE = {
    "weight/a": Piece.whole(torch.arange(12.0).reshape(3, 4).T),  # not contiguous
    "weight/b": Piece.whole(torch.ones(5, dtype=torch.bfloat16)),
    "exp_avg/a": Piece(torch.full((2, 3), 0.5), (2, 0), (4, 3)),
    "weight/c": Piece.whole(torch.arange(5000.0)),
    "empty": Piece.whole(torch.empty(0, dtype=torch.int64)),
}


def open_files() -> list[str]:
    return [own.name for own in Path("/proc/self/fd").iterdir()]


def left(copy: Copy, rank: int = 0) -> LeftCopies:
    found = LeftCopies()
    found.open(rank, os.getpid(), {"descriptor": copy.descriptor, "shard": f"rank-{rank}.safetensors"})
    return found


@pytest.mark.parametrize("part_bytes", [2**24, mmap.ALLOCATIONGRANULARITY])
def test_it_is_written_as_the_state_itself_is(tmp_path: Path, part_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies_module, "_WINDOW_BYTES", part_bytes)
    copy = Copy()
    copy.take(1, {name: STATE[name] for name in ("weight/a", "weight/b")})
    copy.take(3, STATE)  # a longer one over it
    expected = write_shard(tmp_path / "expected", STATE)
    own = copy.write(tmp_path / "own")
    ((rank, written),) = left(copy).write(tmp_path / "partial", 3, but=())
    content = (tmp_path / "expected").read_bytes()
    assert (tmp_path / "own").read_bytes() == (tmp_path / "partial" / "rank-0.safetensors").read_bytes() == content
    assert (own.size, own.xxh3) == (expected.size, expected.xxh3)
    assert isinstance(written, WrittenFile)
    assert (rank, written.size, written.xxh3) == (0, expected.size, expected.xxh3)


def test_one_that_is_being_taken_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Copy()
    watched = left(copy)
    assert watched.steps() == {0: 0}
    copy.take(3, STATE)
    assert watched.steps() == {0: 3}
    put, puts = copy._put, iter(range(3))

    def fails(data: memoryview, at: int) -> int:
        if next(puts, None) is None:
            raise OSError(errno.ENOSPC, "")
        return put(data, at)

    monkeypatch.setattr(copy, "_put", fails)
    with pytest.raises(OSError, match=str(errno.ENOSPC)):
        copy.take(6, STATE)
    assert watched.steps() == {0: 0}


def test_a_process_that_is_gone_has_none() -> None:
    watched = LeftCopies()
    watched.open(0, 2**22 + 1, {"descriptor": 3, "shard": "rank-0.safetensors"})
    assert watched.steps() == {}


def test_it_stays_when_the_rank_is_gone_and_is_let_go(tmp_path: Path) -> None:
    copy = Copy()
    copy.take(3, STATE)
    watched = left(copy)
    assert watched.held_bytes(0) == copy.write(tmp_path / "own").size
    assert watched.held_bytes(1) == 0
    before = open_files()
    del copy
    assert len(open_files()) == len(before) - 1
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "rank-0.safetensors").write_bytes(b"half")  # as the rank left it
    assert [rank for rank, _ in watched.write(tmp_path / "partial", 3, but=())] == [0]
    assert (tmp_path / "partial" / "rank-0.safetensors").stat().st_size > 4
    assert not list(watched.write(tmp_path / "partial", 3, but=(0,)))
    assert not list(watched.write(tmp_path / "partial", 6, but=()))
    watched.close()
    assert len(open_files()) == len(before) - 2
    assert watched.steps() == {}


def test_a_disk_that_does_not_take_it_is_said(tmp_path: Path) -> None:
    copy = Copy()
    copy.take(3, STATE)
    (tmp_path / "partial").write_text("no folder")
    ((_, why),) = left(copy).write(tmp_path / "partial", 3, but=())
    assert why == f"{tmp_path / 'partial/rank-0.safetensors'} cannot be written: File exists"
