"""Tensors without memory, for code that asks what a model does rather than what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import masking_utils
from transformers.integrations import moe


@contextmanager
def imagined() -> Iterator[None]:
    """Within, tensors have shapes and no memory.

    What fake tensors cannot answer is answered for them. Our sequences are not packed, so no mask is needed: without
    this there would be a mask of seq x seq that a run never makes. And experts are multiplied by an operator whose
    shapes do not depend on who is routed where; the processor's own knows no fake fp32.
    """
    with (
        patch.object(fake_tensor.log, "disabled", True),  # a failure is raised, and told in one line by who asked
        FakeTensorMode(allow_non_fake_inputs=True),
        patch.object(masking_utils, "find_packed_sequence_indices", lambda *_: None),
        patch.object(moe, "_can_use_grouped_mm", lambda *_: False),
    ):
        yield
