"""From a job's data to token ids in a store: the tokenizer beside the model, or one trained on the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from evenflow.errors import InputError
from evenflow.models import ModelSource
from evenflow.train.chat import ChatTemplate, has_chat_template
from evenflow.train.corpus import Corpus, DataKeys
from evenflow.train.job import Job
from evenflow.train.progress import Progress
from evenflow.train.sampler import hold_out
from evenflow.train.sequences import Sequences
from evenflow.train.store import TokenStore, build_store
from evenflow.train.tokenizer import check_tokenizer, check_vocabulary, end_of_text_id, find_tokenizer, train_bpe
from evenflow.units import format_count

_TOKENIZER = "tokenizer.json"
_EVAL_TOKENS = "eval-tokens"

Read = TypeVar("Read")


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


def open_corpus(job: Job, source: ModelSource, path: Path | None = None) -> Corpus:
    """The job's documents, or those in another `path`.

    Raises:
        InputError: nothing is there, or it cannot be read.
    """
    keys = DataKeys(job.text_key, job.prompt_key, job.answer_key, job.messages_key)

    def template() -> ChatTemplate | None:
        return ChatTemplate(source.folder) if source.folder and has_chat_template(source.folder) else None

    return Corpus(path or job.data, job.data_format, keys, template)


def check_data(job: Job, source: ModelSource) -> None:
    """Say at once that there is nothing to read, or nothing to read it with.

    Raises:
        InputError: nothing is there, or it cannot be read, or the tokenizer beside the model is not to be used.
    """
    open_corpus(job, source)
    if source.folder is not None:
        check_tokenizer(source.folder)
    if job.eval_data is not None:
        _evaluated(job, lambda path: open_corpus(job, source, path))


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
    store.verify()
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


def prepare_held_out(
    job: Job, source: ModelSource, text: PreparedText, run: Path, progress: Progress, tick: Callable[[], None]
) -> None:
    """See to what a job evaluates: tokens of its own data in the `run`'s folder, or a share of the training's.

    Raises:
        InputError: the data has nothing to evaluate, or nothing would be left to train on.
    """
    if not job.evaluates:
        return
    if job.eval_data is None:
        trained, held_out = hold_out(job.seed, len(text.sequences), job.held_out_share)
        progress.said(f"evaluation: on {len(held_out)} sequences, held out; {len(trained)} are trained on")
        return

    def tokenised(path: Path) -> Sequences:
        corpus = open_corpus(job, source, path)

        def encoded(_characters: int, tokens: int) -> None:
            tick()
            progress.tokenised(corpus.done, corpus.total, tokens)

        folder, separator = run / _EVAL_TOKENS, text.separator_id
        if job.resume:
            _say_damaged(folder, path, progress)
        store = build_store(corpus.documents(), text.tokenizer, folder, separator, corpus.fingerprint(), encoded)
        return Sequences(store, text.sequences.seq_length, text.sequences.packing, text.sequences.separate)

    progress.said(f"evaluation: {_described(_evaluated(job, tokenised))} from {job.eval_data}")


def _say_damaged(folder: Path, data: Path, progress: Progress) -> None:
    """Name what is wrong with tokens that a run made before; the data is there to make them of again."""
    if not folder.exists():  # it evaluated nothing
        return
    try:
        TokenStore.open(folder).verify()
    except InputError as error:
        what, _, _ = str(error).rpartition("; ")
        progress.said(f"warning: {what}; the tokens of {data} are made again")


def evaluation_request(job: Job, micro_batch_size: int) -> dict[str, Any] | None:
    """What ranks need to know of an evaluation; None where there is none."""
    if not job.evaluates:
        return None
    return {
        "every": job.eval_every,
        "micro_batch_size": job.eval_micro_batch_size or micro_batch_size,
        "tokens": str((job.out / _EVAL_TOKENS).resolve()) if job.eval_data else None,
        "share": job.held_out_share,
    }


def _evaluated(job: Job, read: Callable[[Path], Read]) -> Read:
    """Do something with the data to evaluate; what is wrong with it is said to be with that."""
    assert job.eval_data is not None, "there is some"
    try:
        return read(job.eval_data)
    except InputError as error:
        raise InputError(f"--eval-data: {str(error).removeprefix('--data ')}") from None


def _described(sequences: Sequences) -> str:
    store = sequences.store
    text = f"{format_count(len(store.tokens))} tokens"
    if store.learned is not None:
        text += f" ({format_count(int(store.learned.sum()))} learned)"
    if sequences.packing == "padded":
        lengths = [sequences.length(number) for number in range(len(sequences))]
        text += f", {len(sequences)} sequences of {min(lengths)} to {max(lengths)}"
        return f"{text}, each a document, padded to the longest of its microbatch"
    text += f", {len(sequences)} sequences of {sequences.seq_length}"
    if sequences.filled < 1:
        text += f" ({1 - sequences.filled:.0%} padding)"
    documents = format_count(len(store.documents) - 1)
    seen = "each sees itself alone" if sequences.separate else "those in a sequence see the ones before them"
    return text if len(store.documents) == 2 else f"{text}, {documents} documents ({seen})"
