"""From a job's text to token ids in a store: the tokenizer beside the model, or one trained on the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from evenflow.errors import InputError
from evenflow.models import ModelSource
from evenflow.train.progress import Progress
from evenflow.train.store import TokenStore, build_store
from evenflow.train.text import fingerprint, read_documents
from evenflow.train.tokenizer import check_vocabulary, end_of_text_id, find_tokenizer, train_bpe
from evenflow.units import format_count

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class PreparedText:
    """The job's text, tokenised.

    Attributes:
        store: the token ids.
        tokenizer: what made them.
        tokenizer_folder: where it comes from; None for one trained on the text.
        separator_id: the token between documents.
    """

    store: TokenStore
    tokenizer: Tokenizer
    tokenizer_folder: Path | None
    separator_id: int | None


def reopen_text(source: ModelSource, folder: Path, seq_length: int) -> PreparedText:
    """The store that a run made before, and the tokenizer that made it.

    Raises:
        InputError: the folder is not whole.
    """
    store = TokenStore.open(folder)
    store.sequences(seq_length)
    try:
        tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"{folder / _TOKENIZER} is not readable: {error}") from None
    has_own = source.folder is not None and find_tokenizer(source.folder) is not None
    return PreparedText(store, tokenizer, source.folder if has_own else None, store.separator_id)


def prepare_text(
    source: ModelSource, data: Path, folder: Path, seq_length: int, progress: Progress, tick: Callable[[], None]
) -> PreparedText:
    """Tokenise `data` into a store in `folder`; `tick` is called now and then, and what it raises ends the work.

    Raises:
        InputError: no text, too little of it, or a tokenizer that does not fit the model.
    """
    documents = read_documents(data)  # says at once if there is nothing to read
    vocab_size: int = source.config.get_text_config().vocab_size
    tokenizer = find_tokenizer(source.folder) if source.folder else None
    origin = source.folder if tokenizer is not None else None
    if tokenizer is None:
        if source.weight_files:
            progress.said(
                f"warning: {source.folder} has weights but no tokenizer; one trained on the text means other "
                "things by its ids than the weights do"
            )
        progress.said(f"tokenizer: training byte-level BPE of up to {vocab_size} tokens on {data}")
        tokenizer = train_bpe(documents, vocab_size)
    tick()
    check_vocabulary(tokenizer, vocab_size)
    separator = end_of_text_id(tokenizer, origin, getattr(source.config, "eos_token_id", None))
    store = build_store(read_documents(data), tokenizer, folder, separator, fingerprint(data), lambda *_: tick())
    tokenizer.save(str(folder / _TOKENIZER))
    sequences = store.sequences(seq_length)
    progress.said(f"data: {format_count(len(store.tokens))} tokens, {sequences} sequences of {seq_length} from {data}")
    return PreparedText(store, tokenizer, origin, separator)
