"""Finds the model's tokenizer, or trains one where it has none, and puts it beside the trained model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from evenflow.errors import InputError, first_line
from evenflow.files import check_inside
from evenflow.train.store import piece_bounds

END_OF_TEXT = "<|endoftext|>"
_END_NAMES = (END_OF_TEXT, "</s>")
_FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_VOCABULARY_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
_ADVICE = "a tokenizer.json there, as the tokenizer's own `save_pretrained` writes, would do"
_BESIDE = ("merges.txt", "added_tokens.json")  # which transformers reads with a vocabulary
_COPIED = (_CONFIG, "special_tokens_map.json", "chat_template.jinja")

# How a trained tokenizer divides text into words: as Qwen 2 does, since transformers loads tokenizers of that
# family by these rules whatever tokenizer.json says, while it takes all others as they are.
_WORD = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Merges found in a few megabytes hardly differ from those of all the text, and take seconds.
_TRAINING_CHARACTERS = 4_000_000
_SAMPLE_CHARACTERS = 16_384


def find_tokenizer(model_dir: Path) -> Tokenizer | None:
    """The tokenizer that lies in a model directory, or None where there is none.

    Raises:
        InputError: there is one that cannot be read, only by running code that came with it, or elsewhere.
    """
    check_tokenizer(model_dir)
    path = model_dir / _FILE
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise InputError(
                f"{path} is not a tokenizer ({first_line(error)}); without it one is trained on the text"
            ) from None
    if any((model_dir / name).is_file() for name in (*_VOCABULARY_FILES, _CONFIG)):
        return _convert_tokenizer(model_dir)
    return None


def check_tokenizer(model_dir: Path) -> None:
    """Refuse a tokenizer by the looks of its files, before anything is imported to read it.

    Raises:
        InputError: a file leads out of the folder, or only code that came with it could read it.
    """
    for name in (_FILE, *_VOCABULARY_FILES, *_BESIDE, *_COPIED):
        if (model_dir / name).exists():
            check_inside(model_dir, model_dir / name)
    settings = {} if (model_dir / _FILE).is_file() else _settings(model_dir)
    kind, code = settings.get("tokenizer_class"), settings.get("auto_map")
    own = isinstance(kind, str) and {kind, kind.removesuffix("Fast")}.isdisjoint(dir(transformers))
    if own and isinstance(code, dict) and "AutoTokenizer" in code:
        raise InputError(
            f"the tokenizer in {model_dir} is read by code that came with it ({_CONFIG} has tokenizer_class {kind!r} "
            f"and an auto_map), which is never run; {_ADVICE}"
        )


def train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE of `vocab_size` tokens, of which token 0 ends a document.

    It can encode any text without an unknown token. Little text gives fewer tokens than asked for.

    Args:
        documents: the text; at most 4 million characters, drawn evenly over it, are looked at.
        vocab_size: how many tokens the model has.

    Raises:
        InputError: `vocab_size` has no room for all bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + 1
    if vocab_size < least:
        raise InputError(
            f"vocab_size {vocab_size} has no room for a trained tokenizer, which needs each byte and "
            f"{END_OF_TEXT}; a model with vocab_size {least} or more, or with a tokenizer.json, would do"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(documents), trainer)
    return tokenizer


def end_of_text_id(tokenizer: Tokenizer, model_dir: Path | None, config_eos: int | list[int] | None) -> int | None:
    """The token that ends a document; None where the vocabulary has no such token, and documents run on.

    Args:
        tokenizer: has to know the token.
        model_dir: where the tokenizer comes from; None for one trained here, whose ids mean other things than
            those in the model's configuration.
        config_eos: the configuration's `eos_token_id`; the first of several is taken.
    """
    if model_dir is not None:
        first = next(iter(config_eos), None) if isinstance(config_eos, list | tuple) else config_eos
        if isinstance(first, int) and first >= 0 and tokenizer.id_to_token(first) is not None:
            return first
    named = _configured_end(model_dir) if model_dir is not None else None
    for name in (named, *_END_NAMES):
        token = tokenizer.token_to_id(name) if name else None
        if token is not None:
            return token
    return None


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer whose ids do not all have a row in the model's embedding.

    Raises:
        InputError: the largest id is not below `vocab_size`.
    """
    needed = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if needed > vocab_size:
        raise InputError(
            f"the tokenizer has token ids up to {needed - 1}, but the model's vocab_size is {vocab_size}; "
            f"vocab_size {needed} or more, or a tokenizer of at most {vocab_size} tokens, would do"
        )


def save_tokenizer(tokenizer: Tokenizer, model_dir: Path | None, out_dir: Path) -> None:
    """Write a tokenizer so that `AutoTokenizer.from_pretrained(out_dir)` gives it back.

    Args:
        tokenizer: what the model was trained with.
        model_dir: where it comes from, for its configuration; None for one trained here.
        out_dir: the model's directory; made if it is not there.

    Raises:
        InputError: a file to be copied leads out of its folder.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out_dir / _FILE))
    if model_dir is not None and model_dir.resolve() != out_dir.resolve():
        for name in _COPIED:
            if (model_dir / name).is_file():
                check_inside(model_dir, model_dir / name)
                shutil.copyfile(model_dir / name, out_dir / name)
    if model_dir is None or not (out_dir / _CONFIG).is_file():
        # This class takes tokenizer.json as it is; the model's own would put its rules in their place.
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        end = next((name for name in _END_NAMES if tokenizer.token_to_id(name) is not None), None)
        if end is not None:
            settings["eos_token"] = end
        (out_dir / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def _convert_tokenizer(model_dir: Path) -> Tokenizer:
    from transformers import AutoTokenizer  # seconds to import, and most models need it not

    try:
        loaded = AutoTokenizer.from_pretrained(str(model_dir), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # anything: it parses files of a dozen formats
        raise InputError(f"the tokenizer in {model_dir} cannot be read ({first_line(error)}); {_ADVICE}") from None
    backend = getattr(loaded, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        # Without its vocabulary transformers makes one of special tokens only, and says nothing.
        special = {str(token) for token in loaded.all_special_tokens}
        if not backend.get_vocab(with_added_tokens=True).keys() <= special:
            return backend
        raise InputError(f"the tokenizer in {model_dir} has no vocabulary; {_ADVICE}")
    raise InputError(f"{type(loaded).__name__} in {model_dir} works without the tokenizers library; {_ADVICE}")


def _sample(documents: Iterable[str]) -> list[str]:
    """Every n-th piece of the text, for the least n (1, 2, 4, ...) that keeps to `_TRAINING_CHARACTERS`."""
    kept: list[str] = []
    seen = size = 0
    stride = 1
    for document in documents:
        for start, end in piece_bounds(document, _SAMPLE_CHARACTERS):
            if seen % stride == 0:
                kept.append(document[start:end])
                size += end - start
                while size > _TRAINING_CHARACTERS and len(kept) > 1:
                    kept = kept[::2]
                    size = sum(map(len, kept))
                    stride *= 2
            seen += 1
    return kept


def _settings(model_dir: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` says; nothing where it is none."""
    try:
        found = json.loads((model_dir / _CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _configured_end(model_dir: Path) -> str | None:
    """The end-of-text token's name in `tokenizer_config.json`."""
    named = _settings(model_dir).get("eos_token")
    if isinstance(named, dict):
        named = named.get("content")
    return named if isinstance(named, str) else None
