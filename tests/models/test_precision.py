"""What is rounded to bf16, and what a model keeps in fp32 all the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from evenflow.errors import InputError
from evenflow.models import build_stage, compute_in, draw_weights
from evenflow.models.precision import parameter_dtypes
from evenflow.search import check_request
from evenflow.spec import Batch
from tests.conftest import TINY_LLAMA
from tests.property.cases import cluster_of, model_of


def config_of(**changes: Any) -> Any:
    settings = {**TINY_LLAMA, **changes}
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def test_weights_are_the_roundings_of_those_in_fp32_and_rotary_tables_stay() -> None:
    config = config_of(tie_word_embeddings=True)
    whole, less = build_stage(config, range(6)), build_stage(config, range(6))
    for stage in (whole, less):
        draw_weights(stage, 1)
    compute_in(less, "bf16")
    rounded = less.named_model_parameters()
    assert rounded.keys() == whole.named_model_parameters().keys()
    for name, own in whole.named_model_parameters().items():
        assert torch.equal(rounded[name], own.bfloat16()), name
    assert less.model.lm_head.weight is less.model.model.embed_tokens.weight
    tables = dict(less.model.named_buffers())
    assert {own.dtype for own in tables.values()} == {torch.float32}
    assert all(torch.equal(tables[name], own) for name, own in whole.model.named_buffers())


def test_what_stands_for_other_stages_follows() -> None:
    stage = build_stage(config_of(), [2, 3])
    draw_weights(stage, 1)
    compute_in(stage, "bf16")
    assert {getattr(own.module, own.name).dtype for own in stage.absents} == {torch.bfloat16}


def test_what_a_class_has_transformers_keep_in_fp32_is_kept() -> None:
    kept = {
        name for name, own in parameter_dtypes(config_of(model_type="glm4_moe"), "bf16").items() if own.itemsize == 4
    }
    assert any(name.endswith("e_score_correction_bias") for name in kept)
    assert not any("_proj" in name for name in kept)


def test_hidden_states_of_two_types_do_not_cross_stages() -> None:
    """As mamba's, which are fp32 after each block and bf16 after the embedding."""
    model = model_of(4)
    numbers = model.micro_batch_size * model.seq_length * model.hidden_size
    layers = [replace(own, output_bytes=(2 if own.kind == "embedding" else 4) * numbers) for own in model.layers]
    mixed = replace(model, layers=tuple(layers), dtype="bf16")
    assert mixed.crossing is None
    batch = Batch(4, model.micro_batch_size, model.seq_length)
    with pytest.raises(InputError, match="hidden states of different types"):
        check_request(mixed, cluster_of(2), batch, "1f1b")
    check_request(mixed, cluster_of(1), batch, "1f1b")
    assert replace(mixed, layers=tuple(replace(own, output_bytes=2 * numbers) for own in layers)).crossing == "bf16"
