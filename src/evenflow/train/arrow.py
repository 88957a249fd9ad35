"""Parquet files and Hugging Face datasets on disk, through pyarrow: the extra `parquet`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evenflow.errors import InputError, first_line

_ROWS = 1024


def is_dataset(folder: Path) -> bool:
    """Whether `datasets.Dataset.save_to_disk` (or DatasetDict's, with a split `train`) wrote this folder."""
    return (folder / "state.json").is_file() or (
        (folder / "dataset_dict.json").is_file() and (folder / "train" / "state.json").is_file()
    )


def splits_of(folder: Path) -> list[str] | None:
    """The splits of a DatasetDict on disk; None where the folder is none."""
    if not (folder / "dataset_dict.json").is_file():
        return None
    return sorted(own.parent.name for own in folder.glob("*/state.json"))


def count_parquet(file: Path) -> int:
    """The rows of a parquet file.

    Raises:
        InputError: it is none, or pyarrow is not here.
    """
    with _reading(file):
        import pyarrow.parquet

        return int(pyarrow.parquet.ParquetFile(file).metadata.num_rows)


def read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, a thousand in memory at a time.

    Raises:
        InputError: it is none, or pyarrow is not here.
    """
    with _reading(file):
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(_ROWS):
            yield from batch.to_pylist()


def count_arrow(file: Path) -> int:
    """The rows of one file of a dataset on disk; only the heads of its batches are read.

    Raises:
        InputError: it is none, or pyarrow is not here.
    """
    with _reading(file):
        import pyarrow

        with pyarrow.memory_map(str(file)) as source:
            return sum(batch.num_rows for batch in pyarrow.ipc.open_stream(source))


def read_arrow(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of one file of a dataset on disk.

    Raises:
        InputError: it is none, or pyarrow is not here.
    """
    with _reading(file):
        import pyarrow

        with pyarrow.memory_map(str(file)) as source:
            for batch in pyarrow.ipc.open_stream(source):
                for start in range(0, batch.num_rows, _ROWS):
                    yield from batch.slice(start, _ROWS).to_pylist()


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise InputError(
            f"{file} is read with pyarrow, which is not here; `pip install 'evenflow[parquet]'` brings it"
        ) from None
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these two
        raise InputError(f"{file}: cannot be read: {first_line(error)}") from None
