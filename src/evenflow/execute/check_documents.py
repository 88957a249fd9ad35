"""Proves on a small copy that a model keeps the documents of a sequence from seeing each other."""

from __future__ import annotations

from transformers import PretrainedConfig

from evenflow.errors import InputError
from evenflow.execute.check import small_copy, stir
from evenflow.models import build_stage, draw_weights, find_leak

_SEED = 11


def check_documents(config: PretrainedConfig) -> None:
    """Refuse a model whose documents see those before them in a sequence, though their positions start again.

    Raises:
        InputError: they do, and what in its code reads across; or it cannot be tried.
    """
    leak = small_copy(config, _leak)[-1]
    if leak is not None:
        raise InputError(
            f"{config.model_type} cannot keep documents apart that share a sequence: {leak}; --packing padded (each "
            "in a sequence of its own) would do, or --no-separate-documents"
        )


def _leak(small: PretrainedConfig, layers: int) -> str | None:
    stage = build_stage(small, range(layers))
    draw_weights(stage, _SEED)
    stir(stage)
    return find_leak(stage.eval())
