"""From a job's data to token ids in a store: the tokenizer beside the model, or one trained on the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from evenflow.errors import InputError
from evenflow.models import ModelSource
from evenflow.train.chat import ChatTemplate, has_chat_template
from evenflow.train.corpus import Corpus, DataKeys
from evenflow.train.job import Job
from evenflow.train.progress import Progress
from evenflow.train.sequences import Sequences
from evenflow.train.store import TokenStore, build_store
from evenflow.train.tokenizer import check_vocabulary, end_of_text_id, find_tokenizer, train_bpe
from evenflow.units import format_count

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class PreparedText:
    """The job's data, tokenised.

    Attributes:
        store: the token ids.
        sequences: the samples cut from it.
        tokenizer: what made them.
        tokenizer_folder: where it comes from; None for one trained on the text.
        separator_id: the token between documents.
    """

    store: TokenStore
    sequences: Sequences
    tokenizer: Tokenizer
    tokenizer_folder: Path | None
    separator_id: int | None


def open_corpus(job: Job, source: ModelSource) -> Corpus:
    """The job's documents.

    Raises:
        InputError: nothing is there, or it cannot be read.
    """
    keys = DataKeys(job.text_key, job.prompt_key, job.answer_key, job.messages_key)

    def template() -> ChatTemplate | None:
        return ChatTemplate(source.folder) if source.folder and has_chat_template(source.folder) else None

    return Corpus(job.data, job.data_format, keys, template)


def cut(store: TokenStore, job: Job, seq_length: int) -> Sequences:
    """The samples that a store's tokens make; documents stay whole where parts of them are not learned.

    Raises:
        InputError: there is not even one.
    """
    packing = job.packing or ("stream" if store.learned is None else "whole")
    separate = packing == "whole" if job.separate_documents is None else job.separate_documents
    return Sequences(store, seq_length, packing, separate)


def reopen_text(job: Job, source: ModelSource, folder: Path, seq_length: int) -> PreparedText:
    """The store that a run made before, and the tokenizer that made it.

    Raises:
        InputError: the folder is not whole.
    """
    store = TokenStore.open(folder)
    sequences = cut(store, job, seq_length)
    try:
        tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"{folder / _TOKENIZER} is not readable: {error}") from None
    has_own = source.folder is not None and find_tokenizer(source.folder) is not None
    return PreparedText(store, sequences, tokenizer, source.folder if has_own else None, store.separator_id)


def prepare_text(
    job: Job, source: ModelSource, folder: Path, seq_length: int, progress: Progress, tick: Callable[[], None]
) -> PreparedText:
    """Tokenise the job's data into a store in `folder`; `tick` is called now and then, and what it raises ends it.

    Raises:
        InputError: no text, too little of it, or a tokenizer that does not fit the model.
    """
    corpus = open_corpus(job, source)
    vocab_size: int = source.config.get_text_config().vocab_size
    tokenizer = find_tokenizer(source.folder) if source.folder else None
    origin = source.folder if tokenizer is not None else None
    if tokenizer is None:
        if source.weight_files:
            progress.said(
                f"warning: {source.folder} has weights but no tokenizer; one trained on the text means other "
                "things by its ids than the weights do"
            )
        progress.said(f"tokenizer: training byte-level BPE of up to {vocab_size} tokens on {job.data}")
        tokenizer = train_bpe((document.text for document in corpus.documents()), vocab_size)
    tick()
    check_vocabulary(tokenizer, vocab_size)
    separator = end_of_text_id(tokenizer, origin, getattr(source.config, "eos_token_id", None))

    def encoded(_characters: int, tokens: int) -> None:
        tick()
        progress.tokenised(corpus.done, corpus.total, tokens)

    store = build_store(corpus.documents(), tokenizer, folder, separator, corpus.fingerprint(), encoded)
    tokenizer.save(str(folder / _TOKENIZER))
    sequences = cut(store, job, seq_length)
    progress.said(f"data: {_described(sequences)} from {job.data}")
    return PreparedText(store, sequences, tokenizer, origin, separator)


def _described(sequences: Sequences) -> str:
    store = sequences.store
    text = f"{format_count(len(store.tokens))} tokens"
    if store.learned is not None:
        text += f" ({format_count(int(store.learned.sum()))} learned)"
    text += f", {len(sequences)} sequences of {sequences.seq_length}"
    if sequences.filled < 1:
        text += f" ({1 - sequences.filled:.0%} padding)"
    documents = format_count(len(store.documents) - 1)
    seen = "each sees itself alone" if sequences.separate else "those in a sequence see the ones before them"
    return text if len(store.documents) == 2 else f"{text}, {documents} documents ({seen})"
