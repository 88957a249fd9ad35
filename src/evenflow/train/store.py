"""Keeps the data as token ids in memory-mapped files, so that any sequence is read at once by any rank.

tokens.bin       the ids of all documents, one after another
documents.bin    where each document begins, and where the last one ends
learned.bin      for each token whether it is learned; only where some are not
tokens.json      what they are, written last
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from evenflow.errors import InputError
from evenflow.files import write_json
from evenflow.train.document import Document
from evenflow.train.shards import hash_file

FORMAT_VERSION = 3
TOKENS_NAME = "tokens.bin"
DOCUMENTS_NAME = "documents.bin"
LEARNED_NAME = "learned.bin"
FACTS_NAME = "tokens.json"

# An encoded token takes some 100 bytes until its id is written, so a batch bounds the memory; pieces of this
# size still give every core one.
_PIECE_CHARACTERS = 2**19
_BATCH_CHARACTERS = 2**21
_BATCH_PIECES = 1024

_PLACES = np.dtype("<i8")
_DTYPES: dict[str, np.dtype[np.uint16] | np.dtype[np.uint32]] = {
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
}


@dataclass(frozen=True, slots=True, eq=False)
class TokenStore:
    """Token ids on disk; sequences are its windows of `seq_length` tokens, one after the other.

    Open it in each process rather than sending it to one: numpy pickles a mapped file with its contents.

    Attributes:
        folder: where it lies.
        tokens: the mapped token ids.
        documents: where each document begins in them, and where the last one ends.
        learned: for each token whether it is learned; None where all are.
        vocab_size: ids are below it.
        separator_id: the id after each document, if there is one.
        source: the fingerprint of the text, or "" where the text had none.
        tokenizer_hash: a hash of the tokenizer that made it.
    """

    folder: Path
    tokens: NDArray[np.unsignedinteger[Any]]
    documents: NDArray[np.int64]
    learned: NDArray[np.uint8] | None
    vocab_size: int
    separator_id: int | None
    source: str
    tokenizer_hash: str

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """Open the store in `folder`.

        Raises:
            InputError: there is none, or its files do not belong together.
        """
        path = folder / TOKENS_NAME
        facts = _read_facts(folder / FACTS_NAME)
        if facts["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"{folder / FACTS_NAME} has format_version {facts['format_version']}, this evenflow reads "
                f"{FORMAT_VERSION}; without {folder} it is made again"
            )
        try:
            dtype, count = _DTYPES[facts["dtype"]], int(facts["count"])
            _check_size(path, count * dtype.itemsize)
            tokens = np.memmap(path, dtype=dtype, mode="r", shape=(count,))
            path = folder / DOCUMENTS_NAME
            places = int(facts["documents"]) + 1
            _check_size(path, places * _PLACES.itemsize)
            documents = np.memmap(path, dtype=_PLACES, mode="r", shape=(places,))
            path = folder / LEARNED_NAME
            if facts["masked"]:
                _check_size(path, count)
            learned = np.memmap(path, dtype=np.uint8, mode="r", shape=(count,)) if facts["masked"] else None
            return cls(
                folder,
                tokens,
                documents,
                learned,
                facts["vocab_size"],
                facts["separator_id"],
                facts["source"],
                facts["tokenizer"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder / FACTS_NAME} is not what evenflow writes ({error!r}); without {folder} it is made again"
            ) from None
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; without {folder} it is made again") from None

    def verify(self) -> None:
        """Hold the files against the hashes that they were written with; a run does so before it goes on.

        Raises:
            InputError: which file is not as it was written.
        """
        facts = _read_facts(self.folder / FACTS_NAME)
        if facts.pop("hash", None) != _facts_hash(facts):
            raise InputError(
                f"{self.folder / FACTS_NAME} is damaged: it does not have its own hash; a new run makes it"
            )
        written = facts.get("xxh3")
        names = [TOKENS_NAME, DOCUMENTS_NAME, *([LEARNED_NAME] if self.learned is not None else [])]
        for name in names:
            found, expected = hash_file(self.folder / name), written.get(name) if isinstance(written, dict) else None
            if found != expected:
                raise InputError(
                    f"{self.folder / name} is damaged: its hash is {found}, it was written as {expected}; a new run "
                    "makes it again"
                )

    def sequences(self, seq_length: int) -> int:
        """How many sequences of `seq_length` tokens there are; they do not overlap, and a rest is left out.

        Raises:
            InputError: there is not even one.
        """
        count = len(self.tokens)
        if count < seq_length:
            shorter = f" or --seq-length {count}" if count >= 2 else ""
            raise InputError(
                f"the text has {count} tokens, one sequence needs {seq_length}; a longer text{shorter} would do"
            )
        return count // seq_length

    def read(self, sequence: int, seq_length: int) -> NDArray[np.int64]:
        """Read one sequence (counted from 0) as `seq_length` token ids.

        Raises:
            InputError: the file holds an id that its vocabulary does not have.
        """
        if not 0 <= sequence < len(self.tokens) // seq_length:
            raise IndexError(f"sequence {sequence} of {len(self.tokens) // seq_length}")
        return self.ids(sequence * seq_length, (sequence + 1) * seq_length)

    def ids(self, begin: int, end: int) -> NDArray[np.int64]:
        """The tokens from `begin` up to `end`.

        Raises:
            InputError: the file holds an id that its vocabulary does not have.
        """
        ids = self.tokens[begin:end].astype(np.int64)
        # An embedding looks up what is not there without a word a person could read, on GPU above all.
        if ids.max() >= self.vocab_size:
            raise InputError(
                f"{self.folder / TOKENS_NAME} is damaged: token {begin + int(ids.argmax())} is {ids.max()}, the "
                f"vocabulary has {self.vocab_size}; without {self.folder} it is made again"
            )
        return ids


def build_store(
    documents: Iterable[str | Document],
    tokenizer: Tokenizer,
    folder: Path,
    separator_id: int | None,
    source: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> TokenStore:
    """Encode `documents` into a store in `folder`; one that was made of the same is opened instead.

    Args:
        documents: the text; not touched when the store is there already.
        tokenizer: encodes it, with no special tokens added.
        folder: made if it is not there.
        separator_id: goes after each document that is not closed; None for nothing.
        source: the text's fingerprint; without one the store is always made again.
        progress: called after each batch with the characters read and the tokens written so far.

    Raises:
        InputError: the text has no tokens.
    """
    serialized = tokenizer.to_str()
    tokenizer_hash = hashlib.blake2b(serialized.encode(), digest_size=16).hexdigest()
    existing = _existing(folder, source, tokenizer_hash, separator_id) if source else None
    if existing is not None:
        return existing
    tokenizer = _without_limits(tokenizer, serialized)
    vocab_size = 1 + max(max(tokenizer.get_vocab(with_added_tokens=True).values()), separator_id or 0)
    dtype_name = "uint16" if vocab_size < 65536 else "uint32"

    folder.mkdir(parents=True, exist_ok=True)
    names = (TOKENS_NAME, DOCUMENTS_NAME, LEARNED_NAME)
    aside = {name: folder / f"{name}.{os.getpid()}" for name in names}
    try:
        with _Writer(aside, _DTYPES[dtype_name], separator_id) as writer:
            _encode(documents, tokenizer, writer, progress)
        if not writer.tokens:
            raise InputError("the text has no tokens; a longer text would do")
        # The facts go first and come back last, so that they never describe another file.
        (folder / FACTS_NAME).unlink(missing_ok=True)
        for name, file in aside.items():
            if file.exists():
                file.replace(folder / name)
    finally:
        for file in aside.values():
            file.unlink(missing_ok=True)
    facts = {
        "format_version": FORMAT_VERSION,
        "dtype": dtype_name,
        "count": writer.tokens,
        "documents": writer.documents,
        "masked": writer.masked,
        "vocab_size": vocab_size,
        "separator_id": separator_id,
        "source": source,
        "tokenizer": tokenizer_hash,
        "xxh3": {name: hash_file(folder / name) for name in names if (folder / name).exists()},
    }
    write_json(folder / FACTS_NAME, {**facts, "hash": _facts_hash(facts)})
    return TokenStore.open(folder)


def _without_limits(tokenizer: Tokenizer, serialized: str) -> Tokenizer:
    """Some published tokenizers carry the settings of an inference batch: they would drop or invent text."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    free = Tokenizer.from_str(serialized)
    free.no_truncation()
    free.no_padding()
    return free


class _Writer:
    """Writes encoded pieces of documents, and notes where documents end and what is learned."""

    def __init__(self, paths: Mapping[str, Path], dtype: np.dtype[Any], separator_id: int | None) -> None:
        self.tokens = self.documents = 0
        self.masked = False
        self._dtype = dtype
        self._separator = [] if separator_id is None else [separator_id]
        self._learned_path = paths[LEARNED_NAME]
        self._begin = 0
        self._open = ExitStack()
        self._tokens_file = self._open.enter_context(paths[TOKENS_NAME].open("wb"))
        self._documents_file = self._open.enter_context(paths[DOCUMENTS_NAME].open("wb"))
        self._learned_file: IO[bytes] | None = None
        np.zeros(1, _PLACES).tofile(self._documents_file)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in (self._tokens_file, self._documents_file, self._learned_file):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())
        self._open.close()

    def add(self, encoding: Encoding, piece: _Piece) -> None:
        """Write one piece; a document without tokens is none."""
        closes = piece.ends and not piece.document.is_closed
        ids = encoding.ids + self._separator if closes else encoding.ids
        np.array(ids, dtype=self._dtype).tofile(self._tokens_file)
        self._note_learned(encoding, piece.document, len(ids))
        self.tokens += len(ids)
        if piece.ends and self.tokens > self._begin:
            np.array([self.tokens], _PLACES).tofile(self._documents_file)
            self.documents += 1
            self._begin = self.tokens

    def _note_learned(self, encoding: Encoding, document: Document, count: int) -> None:
        if document.learned is None and self._learned_file is None:
            return
        if self._learned_file is None:  # what came before was learned
            self._learned_file = self._open.enter_context(self._learned_path.open("wb"))
            self.masked = True
            for begin in range(0, self.tokens, _BATCH_CHARACTERS):
                np.ones(min(self.tokens - begin, _BATCH_CHARACTERS), np.uint8).tofile(self._learned_file)
        marks = np.ones(count, np.uint8)
        if document.learned is not None:
            marks[: len(encoding.ids)] = _learned_marks(encoding, document.learned)
        marks.tofile(self._learned_file)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a document that is encoded at once."""

    text: str
    document: Document
    ends: bool


def _encode(
    documents: Iterable[str | Document],
    tokenizer: Tokenizer,
    writer: _Writer,
    progress: Callable[[int, int], None] | None,
) -> None:
    characters = 0
    for batch in _batches(documents):
        texts = [piece.text for piece in batch]
        # The fast form keeps no offsets, which only masked documents need: 1.8 times as quick.
        needs_offsets = any(piece.document.learned is not None for piece in batch)
        encode = tokenizer.encode_batch if needs_offsets else tokenizer.encode_batch_fast
        for encoding, piece in zip(encode(texts, add_special_tokens=False), batch, strict=True):
            writer.add(encoding, piece)
            characters += len(piece.text)
        if progress is not None:
            progress(characters, writer.tokens)


def _learned_marks(encoding: Encoding, spans: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which tokens are learned: those that have a character within a span."""
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    marks = np.zeros(len(offsets), dtype=np.bool_)
    for begin, end in spans:
        marks |= (offsets[:, 1] > begin) & (offsets[:, 0] < end)
    return marks


def _batches(documents: Iterable[str | Document]) -> Iterator[list[_Piece]]:
    """Pieces of documents, enough of them to share out; a document with spans is one piece."""
    batch: list[_Piece] = []
    size = 0
    for given in documents:
        document = Document(given) if isinstance(given, str) else given
        text = document.text
        whole = [(0, len(text))] if text else []
        bounds = piece_bounds(text, _PIECE_CHARACTERS) if document.learned is None else whole
        for start, end in bounds:
            batch.append(_Piece(text[start:end], document, end == len(text)))
            size += end - start
            if size >= _BATCH_CHARACTERS or len(batch) == _BATCH_PIECES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def piece_bounds(document: str, size: int) -> Iterator[tuple[int, int]]:
    """Cut a document into pieces of at most `size` characters: after a line, else before a word."""
    start = 0
    while len(document) - start > size:
        end = document.rfind("\n", start, start + size) + 1
        if end <= start:
            end = document.rfind(" ", start + 1, start + size)
        if end <= start:
            end = start + size
        yield start, end
        start = end
    if start < len(document):
        yield start, len(document)


def _existing(folder: Path, source: str, tokenizer_hash: str, separator_id: int | None) -> TokenStore | None:
    """The store in `folder` if it was made of the same text in the same way."""
    try:
        store = TokenStore.open(folder)
        store.verify()
    except InputError:
        return None  # whatever is wrong with it, it is made again
    made_of = (store.source, store.tokenizer_hash, store.separator_id)
    return store if made_of == (source, tokenizer_hash, separator_id) else None


def _facts_hash(facts: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _check_size(path: Path, size: int) -> None:
    """Hold a store's file against the bytes that its facts say.

    Raises:
        InputError: it has others, or none.
    """
    found = path.stat().st_size
    if found != size or size < 1:
        raise InputError(
            f"{path} has {found} bytes where {FACTS_NAME} says {size}; without {path.parent} it is made again"
        )


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: no token store is there; a folder that has one would do") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); without {path.parent} it is made again") from None
    if not isinstance(facts, dict) or "format_version" not in facts:
        raise InputError(f"{path} is not what evenflow writes; without {path.parent} it is made again")
    return facts
