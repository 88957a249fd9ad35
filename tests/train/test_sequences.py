"""Samples cut from the store: nothing is lost, nothing is learned that should not be, and packed equals alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from evenflow.errors import InputError
from evenflow.models import NOT_LEARNED
from evenflow.train.document import Document
from evenflow.train.packing import pack
from evenflow.train.sampler import lengths, microbatch
from evenflow.train.sequences import PackingKind, Sequences
from evenflow.train.store import TokenStore, build_store
from evenflow.train.tokenizer import train_bpe
from tests.conftest import TINY_LLAMA

TALKS = [
    Document(f"question {number} of many? " + "answer " * (1 + number % 7), ((22, 10**6),)) for number in range(40)
]


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    tokenizer = train_bpe([talk.text for talk in TALKS], 300)
    return build_store(TALKS, tokenizer, tmp_path, 0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(2, 30))
@settings(max_examples=150, deadline=None)
def test_packing_keeps_all_documents_and_fits(lengths: list[int], seq_length: int) -> None:
    documents = np.cumsum([0, *lengths])
    packed = pack(documents, None, seq_length)
    pieces = sorted(zip(packed.begins.tolist(), packed.ends.tolist(), strict=True))
    covered = {token for begin, end in pieces for token in range(begin, end)}
    dropped = set(range(int(documents[-1]))) - covered
    assert sum(end - begin for begin, end in pieces) == len(covered)  # nothing twice
    for begin, length in zip(documents.tolist(), lengths, strict=False):
        rest = length % seq_length  # one token alone predicts nothing
        assert dropped & set(range(begin, begin + length)) == ({begin + length - 1} if rest == 1 else set())
    sizes = [
        int((packed.ends - packed.begins)[first:last].sum())
        for first, last in zip(packed.sequences[:-1], packed.sequences[1:], strict=True)
    ]
    assert all(0 < size <= seq_length for size in sizes)
    assert all(one + other > seq_length for one, other in zip(sorted(sizes), sorted(sizes)[1:], strict=False))
    again = pack(documents, None, seq_length)
    assert all(np.array_equal(getattr(packed, part), getattr(again, part)) for part in ("begins", "ends", "sequences"))


def test_only_answers_are_learned_and_nothing_at_a_document_s_start(store: TokenStore) -> None:
    sequences = Sequences(store, 64, "whole", separate=True)
    assert sequences.is_masked
    assert 0.7 < sequences.filled <= 1
    seen = learned = 0
    for number in range(len(sequences)):
        sample = sequences.read(number)
        starts = np.flatnonzero(sample.positions == 0)
        assert (sample.labels[starts] == NOT_LEARNED).all()
        kept = sample.labels != NOT_LEARNED
        assert (sample.labels[kept] == sample.ids[kept]).all()
        learned += int(kept.sum())
        seen += int((sample.ids == 0).sum())
    assert store.learned is not None
    assert learned == int(store.learned.sum())  # each question has tokens before its answer
    assert seen >= len(TALKS)  # the ends of documents, and padding


@pytest.mark.parametrize(
    ("packing", "separate"), [("stream", False), ("stream", True), ("whole", True), ("padded", False)]
)
def test_what_is_predicted_is_counted_without_reading(store: TokenStore, packing: PackingKind, separate: bool) -> None:
    """Every replica counts the tokens of all: were one off, gradients would have another scale than the loss."""
    for learned in (store.learned, None):
        sequences = Sequences(replace(store, learned=learned), 24, packing, separate)
        for number in range(len(sequences)):
            sample = sequences.read(number)
            assert sequences.predicted(number) == int((sample.labels[1:] != NOT_LEARNED).sum())
            assert sequences.length(number) == len(sample.ids) <= 24


def test_padded_documents_are_as_long_as_the_longest_of_their_microbatch(store: TokenStore) -> None:
    sequences = Sequences(store, 64, "padded", separate=True)
    assert (len(sequences), sequences.separate) == (len(TALKS), False)
    ids = (3, 20, 7, 11)
    for index, longest in enumerate(lengths(sequences, ids, 2)):
        rows = microbatch(sequences, ids, index, 2)
        own = [sequences.read(number) for number in ids[2 * index : 2 * index + 2]]
        assert rows.ids.shape == rows.labels.shape == rows.positions.shape == (2, longest)
        assert longest == max(len(sample.ids) for sample in own)
        for row, sample in enumerate(own):
            assert (rows.ids[row, : len(sample.ids)] == sample.ids).all()
            assert (rows.labels[row, len(sample.ids) :] == NOT_LEARNED).all()
    assert len(set(lengths(sequences, ids, 2))) == 2


def test_a_document_ends_are_learned_so_that_a_model_stops(store: TokenStore) -> None:
    sequences = Sequences(store, 64, "whole", separate=True)
    ends = sum(int(((own := sequences.read(n)).labels == 0).sum()) for n in range(len(sequences)))
    assert ends == len(TALKS)
    assert own is not None


@pytest.mark.parametrize("packing", ["stream", "whole"])
def test_packed_documents_give_the_loss_that_they_give_alone(store: TokenStore, packing: str) -> None:
    config = AutoConfig.for_model(**{**TINY_LLAMA, "vocab_size": store.vocab_size})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    sample = Sequences(store, 64, packing, separate=True).read(1)  # type: ignore[arg-type]
    ids, positions = torch.from_numpy(sample.ids), torch.from_numpy(sample.positions)
    with torch.no_grad():
        packed = model(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0]
        bounds = [*np.flatnonzero(sample.positions == 0).tolist(), len(ids)]
        assert len(bounds) > 3
        for begin, end in pairwise(bounds):
            alone = model(input_ids=ids[None, begin:end]).logits[0]
            torch.testing.assert_close(packed[begin:end], alone, rtol=1e-5, atol=1e-5)


def test_a_stream_is_the_text_as_it_stands(store: TokenStore) -> None:
    sequences = Sequences(store, 16, "stream", separate=False)
    assert len(sequences) == len(store.tokens) // 16
    assert np.concatenate([sequences.read(n).ids for n in range(len(sequences))]).tolist() == (
        store.tokens[: len(sequences) * 16].tolist()
    )
    assert all((sequences.read(n).positions == np.arange(16)).all() for n in range(3))


def test_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    tokenizer = train_bpe(["def def"], 300)
    store = build_store([Document("def def", ())], tokenizer, tmp_path, None)
    with pytest.raises(InputError, match="no document with anything to learn"):
        Sequences(store, 8, "whole", separate=True)
    with pytest.raises(IndexError):
        Sequences(build_store(["def " * 40], tokenizer, tmp_path / "b", 0), 8, "stream", separate=False).read(99)
