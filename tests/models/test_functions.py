"""What a layer does at a shape that was not traced: worked out from shapes that were, or traced, and the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evenflow.models import ModelSource, describe_model, find_model, functions
from evenflow.models.functions import stage_functions
from evenflow.models.recording import Recording
from evenflow.spec import Batch, Dtype, Model
from evenflow.spec.cluster import parse_cluster
from evenflow.train import plan_model

WINDOW = 32
SMALL = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 56, "max_position_embeddings": 128,
}  # fmt: skip
CONFIGS: dict[str, dict[str, object]] = {
    "llama": SMALL | {"model_type": "llama"},
    "gpt2": {"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 56, "n_positions": 128},
    "mixtral": SMALL | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma2": SMALL | {"model_type": "gemma2", "head_dim": 8, "sliding_window": WINDOW},
}


class Traced:
    """Counts the stages that are traced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        self._record = functions.record_layers
        monkeypatch.setattr(functions, "record_layers", self._note)
        stage_functions.cache_clear()

    def _note(self, config: object, layers: object, batch: int, seq: int, *others: object) -> Recording:
        self.shapes.append((batch, seq))
        return self._record(config, layers, batch, seq, *others)  # type: ignore[arg-type]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Traced:
    return Traced(monkeypatch)


def source_of(folder: Path, sizes: dict[str, object]) -> ModelSource:
    (folder / "config.json").write_text(json.dumps(sizes))
    return find_model(str(folder))


def fresh(source: ModelSource, shape: tuple[int, int], tp: int = 1, dtype: Dtype = "fp32") -> Model:
    """As if nothing were known."""
    stage_functions.cache_clear()
    return describe_model(source, *shape, tp, dtype)


# What follows from no shape that is known: less than all of them, and more than a window lets through.
LESS, BEYOND = (1, 8), (2, WINDOW + 8)


@pytest.mark.parametrize(
    ("name", "tp", "dtype", "apart"),
    [
        ("llama", 1, "fp32", LESS),
        pytest.param("llama", 2, "bf16", None, marks=pytest.mark.full),
        ("gpt2", 1, "fp32", None),
        ("mixtral", 1, "bf16", None),
        pytest.param("gemma2", 1, "fp32", BEYOND, marks=pytest.mark.full),
    ],
)
def test_a_shape_that_follows_equals_its_trace_and_others_are_traced(
    tmp_path: Path, traced: Traced, name: str, tp: int, dtype: Dtype, apart: tuple[int, int] | None
) -> None:
    source = source_of(tmp_path, CONFIGS[name])
    for shape in ((2, 8), (3, 8), (2, 12)):
        describe_model(source, *shape, tp, dtype)
    traced.shapes.clear()
    asked = {(5, 18): describe_model(source, 5, 18, tp, dtype)}  # 90 tokens, which experts cannot share evenly
    assert traced.shapes == []
    if apart:
        asked[apart] = describe_model(source, *apart, tp, dtype)
        assert set(traced.shapes) == {apart}
    for shape, found in asked.items():
        traced.shapes.clear()
        assert found == fresh(source, shape, tp, dtype)
        assert traced.shapes


def test_a_number_that_is_no_product_of_the_shape_is_not_guessed() -> None:
    known = [(2, 8), (3, 8)]
    assert functions.evaluate(known, [[5, 16, "mm"], [5, 24, "mm"]], (7, 8)) == [5, 56, "mm"]
    assert functions.evaluate(known, [[16], [17]], (7, 8)) is None  # neither stays nor grows with the microbatch
    assert functions.evaluate(known, [["mm"], ["bmm"]], (7, 8)) is None
    assert functions.evaluate(known, [[16], [24]], (7, 9)) is None  # nobody said what the sequence does
    assert functions.evaluate([(2, 8), (2, 12)], [[2 * 8 * 8 * 5], [2 * 12 * 12 * 5]], (3, 10)) is None  # nor batch
    assert functions.evaluate([*known, (2, 12)], [[18], [27], [26]], (5, 10)) == [55]  # labels and one more


def test_planning_many_microbatch_sizes_traces_few(tmp_path: Path, traced: Traced) -> None:
    source = source_of(tmp_path, CONFIGS["llama"])
    cluster = parse_cluster("2xA100-80GB")
    plans = []
    for size in (1, 2, 4, 8, 16, 32):
        plans.append(plan_model(source, cluster, Batch(64, size, 16))[1])
        if size == 4:
            assert {batch for batch, _ in traced.shapes} <= {1, 2, 4}
            traced.shapes.clear()
    assert traced.shapes == []
    stage_functions.cache_clear()
    again = plan_model(source, cluster, Batch(64, 32, 16))[1]
    assert traced.shapes
    assert (plans[-1].predicted, plans[-1].ranks, plans[-1].fingerprint) == (
        again.predicted, again.ranks, again.fingerprint,
    )  # fmt: skip


WIDE = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 16, "vocab_size": 64}


TP_IN_CI = {("llama", "fp32"), ("mixtral", "bf16")}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=() if (name, dtype) in TP_IN_CI else pytest.mark.full)
        for name in ("llama", "mixtral", "qwen2", "gemma2")
        for dtype in ("fp32", "bf16")
    ],
)
def test_a_tp_that_follows_equals_its_trace(tmp_path: Path, traced: Traced, name: str, dtype: Dtype) -> None:
    """Products, attention, bytes, peaks and what processes put together: all of it."""
    sizes = SMALL | CONFIGS.get(name, {"model_type": name}) | WIDE | {"num_key_value_heads": 16}
    source = source_of(tmp_path, sizes)
    for tp in (2, 4):
        describe_model(source, 2, 8, tp, dtype)
    describe_model(source, 2, 8, 1, dtype)  # whose FLOPs a shared model is told by
    traced.shapes.clear()
    found = describe_model(source, 2, 8, 8, dtype)
    # gemma2 caps its logits: gathered, they are joined by as many calls as there are processes, and its head is traced
    assert len(traced.shapes) == (name == "gemma2")
    assert found == fresh(source, (2, 8), 8, dtype)
    assert traced.shapes
    assert {own.forward_work for own in found.layers} != {None}


def is_traced_at_8(source: ModelSource, traced: Traced) -> bool:
    """Whether tp 8 is traced where 1, 2 and 4 are known; it has to be what a fresh trace is."""
    for tp in (1, 2, 4):
        describe_model(source, 2, 8, tp)
    traced.shapes.clear()
    found = describe_model(source, 2, 8, 8)
    is_traced = bool(traced.shapes)  # before the fresh one is
    assert found == fresh(source, (2, 8), 8)
    return is_traced


def test_a_process_with_one_head_is_traced(tmp_path: Path, traced: Traced) -> None:
    """What copies heads beside each other has nothing to do for one."""
    sizes = CONFIGS["llama"] | WIDE | {"num_key_value_heads": 8}
    source = source_of(tmp_path, sizes)
    assert is_traced_at_8(source, traced)


def test_parts_of_several_sizes_are_traced(tmp_path: Path, traced: Traced) -> None:
    """Of a vocabulary that tp does not divide the last process has less."""
    source = source_of(tmp_path, CONFIGS["llama"] | WIDE | {"num_key_value_heads": 16, "vocab_size": 60})
    assert is_traced_at_8(source, traced)


def test_numbers_over_tp_stay_or_are_parts_of_a_whole_or_its_sum() -> None:
    assert functions._at_degree([2, 4], [6, 6], 8) == 6
    assert functions._at_degree([2, 4], [16, 8], 8) == 4
    assert functions._at_degree([2, 4], [6, 12], 8) == 24  # what all processes bring, collected
    assert functions._at_degree([2, 4], [6, 3], 8) is None  # twelve, which eight do not share evenly
    assert functions._at_degree([2, 4], [6, 5], 8) is None
    assert functions._at_degree([2, 4], ["mm", "bmm"], 8) is None


def test_types_and_tp_are_traced_apart(tmp_path: Path, traced: Traced) -> None:
    source = source_of(tmp_path, CONFIGS["llama"])
    for dtype in ("fp32", "bf16"):
        for tp in (1, 2):
            describe_model(source, 2, 8, tp, dtype)
            assert traced.shapes
            traced.shapes.clear()
            describe_model(source, 2, 8, tp, dtype)
            assert traced.shapes == []
