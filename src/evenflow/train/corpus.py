"""The job's data as documents: plain text, JSON lines, parquet files, or a Hugging Face dataset on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from evenflow.errors import InputError
from evenflow.files import check_inside
from evenflow.train.arrow import count_arrow, count_parquet, is_dataset, read_arrow, read_parquet, splits_of
from evenflow.train.chat import ChatTemplate
from evenflow.train.document import Document
from evenflow.train.text import files_below, fingerprint, read_documents

FORMATS = ("auto", "text", "jsonl", "parquet", "dataset")
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class DataKeys:
    """What the data is called in its records.

    Attributes:
        text: a document, all of which is learned.
        prompt: what is read before an answer.
        answer: the answer, which alone is learned.
        messages: a conversation, of which the assistant's part is learned.
    """

    text: str = "text"
    prompt: str = "prompt"
    answer: str = "answer"
    messages: str = "messages"


class Corpus:
    """The documents of a file or folder, in an order that hangs on nothing but their names and places.

    Args:
        path: where they are.
        form: one of FORMATS; `auto` goes by the files' names.
        keys: what the records' parts are called.
        template: makes the chat template when the first conversation comes; None where there is no tokenizer.

    Attributes:
        form: which format it is.
        total: bytes to read, or rows.
        done: how many of them have been.

    Raises:
        InputError: nothing is there, or it cannot be read as that.
    """

    def __init__(
        self,
        path: Path,
        form: str = "auto",
        keys: DataKeys | None = None,
        template: Callable[[], ChatTemplate | None] = lambda: None,
    ) -> None:
        self.path = path
        self.keys = keys or DataKeys()
        self.form = _form_of(path) if form == "auto" else form
        self.done = 0
        self._find_template = template
        self._template: ChatTemplate | None = None
        self._files = () if self.form == "text" else _files(path, self.form)
        if self.form == "text":
            read_documents(path)  # says at once that nothing is there
        match self.form:
            case "parquet":
                self.total = sum(map(count_parquet, self._files))
            case "dataset":
                self.total = sum(map(count_arrow, self._files))
            case _:
                self.total = sum(file.stat().st_size for file in self._files or files_below(path))

    def fingerprint(self) -> str:
        """Equal while neither the files nor how they are read have changed."""
        template = self._template_text()
        reading = hashlib.blake2b(repr((self.form, astuple(self.keys), template)).encode(), digest_size=8).hexdigest()
        return f"{fingerprint(self.path)}-{reading}"

    def documents(self) -> Iterator[Document]:
        """All documents; the first record that is none ends it.

        Raises:
            InputError: file and line (or row) of a record that is none, and what it lacks.
        """
        self.done = 0
        if self.form == "text":
            for text in read_documents(self.path):
                yield Document(text)
                self.done += len(text.encode("utf-8", "surrogatepass"))
            return
        found = False
        for where, size, record in self._records():
            document = self._document(record, where)
            if document.text:
                found = True
                yield document
            self.done += size
        if not found:
            raise InputError(f"--data {self.path} has no text in any of its records")

    def _records(self) -> Iterator[tuple[str, int, object]]:
        """Each record: where it is, what share of `total` it is, and what it says."""
        for file in self._files:
            if self.form == "jsonl":
                yield from _json_lines(file)
            else:
                rows = read_parquet(file) if self.form == "parquet" else read_arrow(file)
                for number, row in enumerate(rows, 1):
                    yield f"{file}: row {number}", 1, row

    def _document(self, record: object, where: str) -> Document:
        keys = self.keys
        if not isinstance(record, dict):
            raise InputError(f"{where}: is not an object with keys")
        if keys.messages in record:
            messages = record[keys.messages]
            if not (isinstance(messages, list) and messages and all(isinstance(own, dict) for own in messages)):
                raise InputError(f"{where}: {keys.messages}: should be a list of messages with role and content")
            return self._chat(messages, where)
        if keys.prompt in record and keys.answer in record:
            prompt, answer = (_text_of(record, key, where) for key in (keys.prompt, keys.answer))
            if self._has_template():
                asked = {"role": "user", "content": prompt}
                return self._chat([asked, {"role": "assistant", "content": answer}], where)
            return Document(prompt + answer, ((len(prompt), len(prompt) + len(answer)),))
        if keys.text in record:
            return Document(_text_of(record, keys.text, where))
        raise InputError(
            f"{where}: has neither {keys.text!r}, nor {keys.prompt!r} and {keys.answer!r}, nor {keys.messages!r}; it "
            f"has {', '.join(map(repr, list(record)[:6])) or 'no keys'}, and --text-key, --prompt-key with "
            "--answer-key, or --messages-key can name one of them"
        )

    def _chat(self, messages: list[dict[str, Any]], where: str) -> Document:
        if not self._has_template() or self._template is None:
            raise InputError(
                f"{where}: is a conversation, and there is no tokenizer with a chat template beside the model; data "
                "with a prompt and an answer needs none"
            )
        try:
            return self._template.document(messages)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def _has_template(self) -> bool:
        if self._template is None:
            self._template = self._find_template()
        return self._template is not None

    def _template_text(self) -> str:
        if self.form == "text":
            return ""
        return self._template.text if self._has_template() and self._template is not None else ""


def _form_of(path: Path) -> str:
    """By the name of a file; a folder is what all its files are, or text."""
    if path.is_dir():
        if is_dataset(path):
            return "dataset"
        if (splits := splits_of(path)) is not None:
            raise InputError(
                f"--data {path} is a dataset without a split 'train'; it has {', '.join(splits) or 'none'}, and "
                f"--data {path / splits[0] if splits else 'another'} would do"
            )
        kinds = {_SUFFIXES.get(file.suffix, "text") for file in files_below(path)} or {"text"}
        if len(kinds) > 1:  # records would be read as text, or text passed over, and nobody would see it
            raise InputError(
                f"--data {path} has files of several kinds ({', '.join(sorted(kinds))}); --data-format says which of "
                "them to read"
            )
        return kinds.pop()
    return _SUFFIXES.get(path.suffix, "text")


def _files(path: Path, form: str) -> tuple[Path, ...]:
    if not path.exists():
        raise InputError(f"--data {path} does not exist; a file or a folder would do")
    if form == "dataset":
        if not is_dataset(path):
            raise InputError(f"--data {path} is no dataset that `save_to_disk` wrote: it has no state.json")
        folder = path / "train" if (path / "dataset_dict.json").is_file() else path
        files = tuple(sorted(folder.glob("*.arrow")))
        for file in files:
            check_inside(path, file)
        return files
    if path.is_file():
        return (path,)
    endings = [suffix for suffix, own in _SUFFIXES.items() if own == form]
    files = tuple(file for file in files_below(path) if file.suffix in endings)
    if not files:
        raise InputError(f"--data {path} has no {' or '.join(endings)} file below it")
    return files


def _json_lines(file: Path) -> Iterator[tuple[str, int, object]]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{file}: line {number}"
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except UnicodeDecodeError:
                    raise InputError(f"{where}: is not UTF-8 text") from None
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{where}: is not JSON: {getattr(error, 'msg', error)}") from None
                yield where, len(line), record
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None


def _text_of(record: dict[str, Any], key: str, where: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise InputError(f"{where}: {key}: should be a string, not {json.dumps(value, default=str)[:_SHOWN]}")
    return value
