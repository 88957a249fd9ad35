"""Tells a rank's lack of memory from other errors, so that it is said with what was planned and what was held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from evenflow.errors import FaultError, RankError, first_line


@contextmanager
def saying_what_lacks(say: Callable[[str], str]) -> Iterator[None]:
    """Turn an error that says that this host or a device has no memory left into a `FaultError` of one line.

    Args:
        say: makes the line of the error's own.

    Raises:
        FaultError: there was no memory left. Other errors pass.
    """
    try:
        yield
    except (RuntimeError, MemoryError, RankError) as failure:
        error = failure.__cause__ if isinstance(failure, RankError) and failure.__cause__ else failure
        if not _is_out_of_memory(error):
            raise
        raise FaultError(f"out of memory{say(first_line(error))}") from error


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
