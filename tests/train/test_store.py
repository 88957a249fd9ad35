from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from evenflow.errors import InputError
from evenflow.train import store as under_test
from evenflow.train.store import TokenStore, build_store, piece_bounds
from evenflow.train.tokenizer import train_bpe

STDLIB = Path(sysconfig.get_paths()["stdlib"])
TEXTS = [(STDLIB / name).read_text() for name in ("textwrap.py", "heapq.py", "bisect.py")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, 400)


def _all(store: TokenStore) -> list[int]:
    return store.tokens.tolist()


def _never() -> Iterator[str]:
    raise AssertionError("the text was read again")
    yield ""


def test_the_text_comes_back_with_separators(tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = build_store(iter(TEXTS), tokenizer, tmp_path / "a/b", 0, "text-1")
    expected = [token for text in TEXTS for token in [*tokenizer.encode(text).ids, 0]]
    assert _all(store) == expected
    assert store.tokens.dtype == np.uint16
    assert (store.vocab_size, store.separator_id, store.source) == (400, 0, "text-1")
    assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == ["documents.bin", "tokens.bin", "tokens.json"]
    opened = TokenStore.open(tmp_path / "a/b")
    assert _all(opened) == expected
    with pytest.raises(ValueError, match="read-only"):
        opened.tokens[0] = 1


def test_without_a_separator_documents_run_on(tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = build_store(["def", "class"], tokenizer, tmp_path, None)
    assert _all(store) == tokenizer.encode("def").ids + tokenizer.encode("class").ids


def test_sequences_do_not_overlap(tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = build_store(TEXTS, tokenizer, tmp_path, 0)
    count = store.sequences(64)
    assert count == len(store.tokens) // 64
    first, last = store.read(0, 64), store.read(count - 1, 64)
    assert first.dtype == np.int64
    assert first.tolist() == _all(store)[:64]
    assert last.tolist() == _all(store)[(count - 1) * 64 : count * 64]
    for index in (-1, count):
        with pytest.raises(IndexError):
            store.read(index, 64)


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({f"w{number}": number for number in range(70_000)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    store = build_store(["w69999 w1 w65536"], tokenizer, tmp_path, 3)
    assert store.tokens.dtype == np.uint32
    assert store.read(0, 4).tolist() == [69999, 1, 65536, 3]


def test_special_tokens_truncation_and_padding_of_a_tokenizer_stay_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    eager = Tokenizer.from_str(tokenizer.to_str())
    eager.post_processor = TemplateProcessing(single=f"$A {'<|endoftext|>'}", special_tokens=[("<|endoftext|>", 0)])
    eager.enable_truncation(8)
    eager.enable_padding(length=100_000)
    store = build_store(TEXTS, eager, tmp_path, 0)
    assert _all(store) == [token for text in TEXTS for token in [*tokenizer.encode(text).ids, 0]]
    assert eager.truncation is not None  # the caller's own is left as it was


def test_long_documents_are_cut_at_line_ends(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "_PIECE_CHARACTERS", 200)
    monkeypatch.setattr(under_test, "_BATCH_CHARACTERS", 500)
    seen: list[tuple[int, int]] = []
    store = build_store(TEXTS, tokenizer, tmp_path, 0, progress=lambda *counts: seen.append(counts))
    assert _all(store).count(0) == len(TEXTS)
    documents = tokenizer.decode(_all(store), skip_special_tokens=False).split("<|endoftext|>")
    assert documents == [*TEXTS, ""]
    assert len(seen) > 20
    assert seen == sorted(seen)
    assert seen[-1] == (sum(map(len, TEXTS)), len(store.tokens))


@pytest.mark.parametrize(
    ("document", "pieces"),
    [
        ("", []),
        ("ab\ncd\n", ["ab\ncd\n"]),
        ("ab\ncd\nef\n", ["ab\ncd\n", "ef\n"]),
        ("ab\n\n\n\n\n\ncd", ["ab\n\n\n\n\n", "\ncd"]),
        ("aaa bbb ccc", ["aaa", " bbb", " ccc"]),
        (" aaaaaaaaaaa", [" aaaaaa", "aaaaa"]),
    ],
)
def test_pieces(document: str, pieces: list[str]) -> None:
    assert [document[start:end] for start, end in piece_bounds(document, 7)] == pieces


def test_too_little_text_says_how_much_there_is(tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = build_store(["def def def"], tokenizer, tmp_path, 0)
    count = len(store.tokens)
    assert store.sequences(count) == 1
    with pytest.raises(InputError, match=rf"has {count} tokens, .* needs 256; .* --seq-length {count} would do"):
        store.sequences(256)


@pytest.mark.parametrize("documents", [[], [""]])
def test_no_text_is_refused_and_leaves_nothing(tokenizer: Tokenizer, tmp_path: Path, documents: list[str]) -> None:
    with pytest.raises(InputError, match="no tokens"):
        build_store(documents, tokenizer, tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_reused_for_the_same_text_and_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first = _all(build_store(TEXTS, tokenizer, tmp_path, 0, "one"))
    assert _all(build_store(_never(), tokenizer, tmp_path, 0, "one")) == first
    for other, separator, source in (
        (tokenizer, 0, "two"),
        (tokenizer, None, "one"),
        (train_bpe(TEXTS, 300), 0, "one"),
        (tokenizer, 0, ""),
    ):
        with pytest.raises(AssertionError, match="read again"):
            build_store(_never(), other, tmp_path, separator, source)
    # A text that fails half-way leaves the old store in place.
    assert _all(build_store(_never(), tokenizer, tmp_path, 0, "one")) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["documents.bin", "tokens.bin", "tokens.json"]


def test_a_truncated_store_is_refused_and_made_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first = _all(build_store(TEXTS, tokenizer, tmp_path, 0, "one"))
    path = tmp_path / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=rf"tokens\.bin has {2 * len(first) - 2} bytes where .* {2 * len(first)}"):
        TokenStore.open(tmp_path)
    assert _all(build_store(TEXTS, tokenizer, tmp_path, 0, "one")) == first


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format_version": 99}, "format_version 99"),
        ({"dtype": "float8"}, "not what evenflow writes"),
        ({"dtype": "uint32"}, r"tokens\.bin has"),
        ({"count": None}, "not what evenflow writes"),
    ],
)
def test_facts_of_another_file_are_refused(
    tokenizer: Tokenizer, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    build_store(TEXTS, tokenizer, tmp_path, 0)
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    with pytest.raises(InputError, match=reason):
        TokenStore.open(tmp_path)


def test_missing_and_broken_files_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokens\.json does not exist"):
        TokenStore.open(tmp_path)
    build_store(TEXTS, tokenizer, tmp_path, 0)
    (tmp_path / "tokens.bin").unlink()
    with pytest.raises(InputError, match=r"tokens\.bin: No such file"):
        TokenStore.open(tmp_path)
    for content in ("{", "[]", "{}"):
        (tmp_path / "tokens.json").write_text(content)
        with pytest.raises(InputError, match=r"tokens\.json"):
            TokenStore.open(tmp_path)


def test_a_token_that_the_vocabulary_lacks_is_refused_when_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = build_store(TEXTS, tokenizer, tmp_path, 0)
    damaged = np.fromfile(tmp_path / "tokens.bin", dtype=np.uint16)
    damaged[70] = 400
    damaged.tofile(tmp_path / "tokens.bin")
    store = TokenStore.open(tmp_path)
    store.read(0, 64)
    with pytest.raises(InputError, match=r"tokens\.bin is damaged: token 70 is 400, .* has 400"):
        store.read(1, 64)
