"""Tensors without memory, for code that asks what a model does rather than what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import masking_utils


@contextmanager
def imagined() -> Iterator[None]:
    """Within, tensors have shapes and no memory.

    What fake tensors cannot answer is answered for them: our sequences are not packed, so no mask is needed. Without
    this there would be a mask of seq x seq that a run never makes.
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        patch.object(masking_utils, "find_packed_sequence_indices", lambda *_: None),
    ):
        yield
