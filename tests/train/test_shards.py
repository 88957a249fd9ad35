"""Shards of a checkpoint: read back in any other cut, by us and by torch itself; what is not whole is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import xxhash
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader

from evenflow.errors import InputError
from evenflow.train.shards import Piece, hash_file, read_pieces, saved_names, write_shard


def table() -> torch.Tensor:
    return torch.arange(60, dtype=torch.float32).reshape(6, 10)


def write_rows(folder: Path, *cuts: tuple[int, int]) -> None:
    """Write rows of the table, a cut a shard."""
    for number, (begin, end) in enumerate(cuts):
        write_shard(folder / f"rank-{number}.safetensors", {"w": Piece(table()[begin:end], (begin, 0), (6, 10))})


def test_a_shard_is_plain_safetensors(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "counts": torch.arange(7),
        "transposed": torch.randn(4, 6).T,
        "none": torch.empty(0, 4),
    }
    written = write_shard(tmp_path / "a.safetensors", {name: Piece.whole(own) for name, own in tensors.items()})
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], own) and found[name].dtype == own.dtype for name, own in tensors.items())
    content = (tmp_path / "a.safetensors").read_bytes()
    assert (written.size, written.xxh3) == (len(content), xxhash.xxh3_128(content).hexdigest())
    assert hash_file(tmp_path / "a.safetensors") == written.xxh3
    assert saved_names(tmp_path) == tensors.keys()
    again = {name: torch.empty_like(own, memory_format=torch.contiguous_format) for name, own in tensors.items()}
    read_pieces(tmp_path, {name: Piece.whole(own) for name, own in again.items()})
    assert all(torch.equal(again[name], own) for name, own in tensors.items())


def test_a_shard_is_never_written_over(tmp_path: Path) -> None:
    write_rows(tmp_path, (0, 6))
    with pytest.raises(FileExistsError):
        write_rows(tmp_path, (0, 3))


def test_torchs_own_reader_joins_the_shards(tmp_path: Path) -> None:
    write_rows(tmp_path, (0, 2), (2, 5), (5, 6))
    found = {"w": torch.zeros(6, 10)}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert torch.equal(found["w"], table())


@pytest.mark.parametrize(
    ("rows", "columns"), [((0, 6), (0, 10)), ((0, 3), (0, 10)), ((3, 6), (0, 10)), ((1, 6), (4, 9)), ((5, 6), (9, 10))]
)
def test_any_cut_is_read_from_any_other(tmp_path: Path, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    write_rows(tmp_path, (0, 1), (1, 4), (4, 6), (4, 6))  # a tied weight is there twice
    target = torch.full((rows[1] - rows[0], columns[1] - columns[0]), -1.0)
    read_pieces(tmp_path, {"w": Piece(target, (rows[0], columns[0]), (6, 10))})
    assert torch.equal(target, table()[rows[0] : rows[1], columns[0] : columns[1]])


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (lambda: {"v": Piece.whole(torch.zeros(6, 10))}, "lacks v "),
        (lambda: {"w": Piece.whole(torch.zeros(10, 6))}, r"w has shape \[6, 10\], the model's is \[10, 6\]"),
        (lambda: {"w": Piece.whole(torch.zeros(6, 10, dtype=torch.bfloat16))}, "w is float32, the run's is bfloat16"),
        (lambda: {"w": Piece.whole(torch.zeros(6, 10))}, "has only parts of w"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, wanted: Callable[[], dict[str, Piece]], says: str) -> None:
    write_rows(tmp_path, (0, 2), (3, 6))
    with pytest.raises(InputError, match=says):
        read_pieces(tmp_path, wanted())


def test_a_file_that_is_no_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "rank-0.safetensors").write_bytes(b"\x10" * 64)
    with pytest.raises(InputError, match="is not a readable checkpoint"):
        read_pieces(tmp_path, {"w": Piece.whole(torch.zeros(1))})
