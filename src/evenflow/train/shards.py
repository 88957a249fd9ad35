"""Tensors of a checkpoint on disk: safetensors shards as `torch.distributed.checkpoint` reads them.

A shard holds pieces: a tensor's name, its whole shape, and where in it the piece begins. So a tensor may be spread over
shards in any way and is read back in any other, piece by piece, by torch's own HuggingFaceStorageReader. The writing is
ours. DCP's writer plans by collectives, which a thread beside a training step must not make, and keeps all bytes of a
shard in memory once more; ours writes the same format straight from the tensors, and hashes what it writes.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from evenflow.errors import InputError, first_line

PART_BYTES = 2**24  # of a file at once: hashed while they are still in the cache, then written
_ALIGNED = 8
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A part of a tensor, or all of it.

    Attributes:
        tensor: the part.
        offsets: where in the whole tensor it begins, for each dimension.
        shape: the whole tensor's.
    """

    tensor: Tensor
    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, tensor: Tensor) -> Piece:
        """The piece that is the whole tensor."""
        return cls(tensor, (0,) * tensor.ndim, tuple(tensor.shape))


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file on disk.

    Attributes:
        name: its name in the checkpoint's folder.
        size: its bytes.
        xxh3: the 128-bit xxHash (XXH3) of them.
        seconds: how long it took to write, fsync and hashing included.
        hash_s: the hashing alone.
    """

    name: str
    size: int
    xxh3: str
    seconds: float
    hash_s: float


def lay_out(pieces: Mapping[str, Piece]) -> tuple[bytes, list[Tensor]]:
    """A shard's header, and the tensors that follow it: the widest types first, so that all are aligned."""
    ordered = {name: pieces[name] for name in sorted(pieces, key=lambda name: -pieces[name].tensor.element_size())}
    return _header(ordered), [piece.tensor for piece in ordered.values()]


def write_shard(path: Path, pieces: Mapping[str, Piece]) -> WrittenFile:
    """Write pieces, which are in host memory, as one safetensors file that is on the disk when this returns.

    Raises:
        OSError: the disk is full or failed, or the file is there already.
    """
    header, tensors = lay_out(pieces)
    return write_file(path, chain([memoryview(header)], map(_bytes_of, tensors)))


def write_file(path: Path, parts: Iterable[memoryview]) -> WrittenFile:
    """Write a file that is on the disk when this returns, and hash it.

    Raises:
        OSError: the disk is full or failed, or the file is there already.
    """
    begin, hash_s = time.perf_counter(), 0.0
    digest = xxhash.xxh3_128()
    size = 0
    with path.open("xb", buffering=0) as file:
        for data in parts:
            part = data
            for start in range(0, len(data), PART_BYTES):
                part = data[start : start + PART_BYTES]
                hashing = time.perf_counter()
                digest.update(part)
                hash_s += time.perf_counter() - hashing
                _write(file, part)
            size += len(data)
            del data, part  # they may be mapped, and need not be while the next ones are
        os.fsync(file.fileno())
    return WrittenFile(path.name, size, digest.hexdigest(), time.perf_counter() - begin, hash_s)


def hash_file(path: Path) -> str:
    """The 128-bit xxHash (XXH3) of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while part := file.read(PART_BYTES):
            digest.update(part)
    return digest.hexdigest()


def hash_tensor(tensor: Tensor) -> str:
    """The same of a tensor in host memory."""
    return xxhash.xxh3_128(_bytes_of(tensor)).hexdigest()


def saved_names(folder: Path) -> frozenset[str]:
    """The names of all tensors in a checkpoint's shards."""
    return frozenset(_metadata(folder, HuggingFaceStorageReader(str(folder))).state_dict_metadata)


@torch.no_grad()
def read_pieces(folder: Path, wanted: Mapping[str, Piece]) -> None:
    """Fill these pieces' tensors from whichever shards have them.

    Raises:
        InputError: a tensor is missing, in parts or as a whole, or of another shape or dtype; or a shard is unreadable.
    """
    if not wanted:
        return
    reader = HuggingFaceStorageReader(str(folder))
    metadata = _metadata(folder, reader)
    found = metadata.state_dict_metadata
    missing = [name for name in wanted if name not in found]
    if missing:
        raise InputError(f"{folder} lacks {min(missing)} ({len(missing)} of {len(wanted)} tensors); another run's?")
    for name, piece in wanted.items():
        saved = found[name]
        assert isinstance(saved, TensorStorageMetadata), "shards have tensors only"
        if tuple(saved.size) != piece.shape:
            raise InputError(f"{folder}: {name} has shape {list(saved.size)}, the model's is {list(piece.shape)}")
        if saved.properties.dtype != piece.tensor.dtype:  # DCP's reader would convert it without a word
            raise InputError(
                f"{folder}: {name} is {_said(saved.properties.dtype)}, the run's is {_said(piece.tensor.dtype)}"
            )
        if _overlap(saved.chunks, piece) < piece.tensor.numel():
            raise InputError(f"{folder} has only parts of {name}")
    planner = _PieceReader(wanted)
    planner.set_up_planner({}, metadata)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    try:
        reader.read_data(reader.prepare_local_plan(planner.create_local_plan()), planner).wait()
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder} is not a readable checkpoint: {first_line(error)}") from None


class _PieceReader(LoadPlanner):
    """Tells DCP which parts of the saved tensors go where."""

    def __init__(self, wanted: Mapping[str, Piece]) -> None:
        self._wanted = wanted
        self._metadata: Metadata | None = None

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Take what the shards hold."""
        del state_dict, is_coordinator
        self._metadata = metadata

    def create_local_plan(self) -> LoadPlan:
        """All reads that fill the wanted pieces."""
        assert self._metadata is not None, "DCP sets a planner up first"
        reads: list[ReadItem] = []
        for name, piece in self._wanted.items():
            saved = self._metadata.state_dict_metadata[name]
            assert isinstance(saved, TensorStorageMetadata), "shards have tensors only"
            chunk = ChunkStorageMetadata(torch.Size(piece.offsets), piece.tensor.shape)
            reads += create_read_items_for_chunk_list(name, saved, [chunk])
        return LoadPlan(reads)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """Ranks read on their own."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """Nothing is left to decide."""
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Never asked for: what is no tensor is in the manifest."""
        del read_item, value
        raise AssertionError("shards have tensors only")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """Where a read goes."""
        tensor = self._wanted[read_item.dest_index.fqn].tensor.detach()
        for dim, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            tensor = tensor.narrow(dim, offset, length)
        return tensor

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """It was read in place."""


def _metadata(folder: Path, reader: HuggingFaceStorageReader) -> Metadata:
    try:
        metadata: Metadata = reader.read_metadata()
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{folder} is not a readable checkpoint: {first_line(error)}") from None
    return metadata


def _overlap(chunks: Sequence[ChunkStorageMetadata], piece: Piece) -> int:
    """How many of a piece's elements the saved chunks have; a chunk that was saved twice counts once."""
    total = 0
    for offsets, sizes in {(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in chunks}:
        total += prod(
            max(min(begin + size, own + length) - max(begin, own), 0)
            for begin, size, own, length in zip(offsets, sizes, piece.offsets, piece.tensor.shape, strict=True)
        )
    return total


def _header(pieces: Mapping[str, Piece]) -> bytes:
    """A safetensors header that says, as DCP's writer does, where each piece begins in its tensor."""
    offsets = {name: {"saved_offsets": list(piece.offsets)} for name, piece in pieces.items()}
    header: dict[str, Any] = {
        "__metadata__": {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}
    }
    begin = 0
    for name, piece in pieces.items():
        end = begin + piece.tensor.nbytes
        shape = list(piece.tensor.shape)
        header[name] = {"dtype": _DTYPES[piece.tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> memoryview:
    flat: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _write(file: io.FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _said(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
