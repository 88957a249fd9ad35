"""Records of every kind become documents; of conversations the assistant's part alone is learned."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from evenflow.errors import InputError
from evenflow.train.chat import ChatTemplate, has_chat_template
from evenflow.train.corpus import Corpus, DataKeys
from evenflow.train.document import Document
from evenflow.train.store import build_store
from evenflow.train.tokenizer import train_bpe

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}A: {% generation %}{{ message['content'] }}"
    "<|im_end|>{% endgeneration %}{% else %}U: {{ message['content'] }} {% endif %}{% endfor %}"
)
FORGETFUL = (  # shows earlier answers without their reasoning, as templates of reasoning models do
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if not loop.last and message['role'] == 'assistant' %}{{ message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [
    {"role": "user", "content": "two and two?"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "and two?"},
    {"role": "assistant", "content": "six"},
]


def tokenizer_with(folder: Path, template: str) -> Path:
    """A tokenizer with a chat template, as transformers saves it."""
    bpe = train_bpe(["two and two? four and two? six user assistant reasoning " * 20], 320)
    bpe.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    assert has_chat_template(folder)
    return folder


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def learned_of(document: Document) -> list[str]:
    assert document.learned is not None
    return [document.text[begin:end] for begin, end in document.learned]


@pytest.mark.parametrize(
    ("template", "learned"),
    [
        (CHATML, ["four<|im_end|>", "six<|im_end|>"]),
        (MARKED, ["four<|im_end|>", "six<|im_end|>"]),
        (FORGETFUL, ["four<|im_end|>", "six<|im_end|>"]),
    ],
)
def test_the_answers_of_a_conversation_are_learned(tmp_path: Path, template: str, learned: list[str]) -> None:
    document = ChatTemplate(tokenizer_with(tmp_path, template)).document(TALK)
    assert learned_of(document) == learned
    assert document.is_closed


def test_an_answer_that_is_shown_otherwise_later_is_read_only(tmp_path: Path) -> None:
    talk = [dict(message) for message in TALK]
    talk[1]["content"] = "reasoning</think>four"
    assert learned_of(ChatTemplate(tokenizer_with(tmp_path, FORGETFUL)).document(talk)) == ["six<|im_end|>"]


def test_the_labels_are_those_that_transformers_marks(tmp_path: Path) -> None:
    folder = tokenizer_with(tmp_path / "model", MARKED)
    template = ChatTemplate(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    store = build_store([template.document(TALK)], tokenizer, tmp_path / "tokens", 0)
    loaded = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = loaded.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    assert store.tokens.tolist() == expected["input_ids"]
    assert store.learned is not None
    assert store.learned.tolist() == expected["assistant_masks"]


def test_conversations_without_an_answer_are_refused(tmp_path: Path) -> None:
    template = ChatTemplate(tokenizer_with(tmp_path, CHATML))
    with pytest.raises(InputError, match="no message of role 'assistant'"):
        template.document(TALK[:1])
    (tmp_path / "bad").mkdir()
    raising = ChatTemplate(tokenizer_with(tmp_path / "bad", "{{ raise_exception('roles must alternate') }}"))
    with pytest.raises(InputError, match="refuses the conversation \\(roles must alternate"):
        raising.document(TALK)


def test_records_of_every_kind(tmp_path: Path) -> None:
    folder = tokenizer_with(tmp_path / "model", CHATML)
    path = write_lines(
        tmp_path / "data.jsonl", {"text": "plain"}, {"q": "two?", "a": "2"}, {"messages": TALK[:2]}, {"text": ""}
    )
    keys = DataKeys(prompt="q", answer="a")
    plain, exchange, talk = Corpus(path, keys=keys, template=lambda: ChatTemplate(folder)).documents()
    assert plain == Document("plain")
    assert learned_of(exchange) == ["2<|im_end|>"]
    assert exchange.text == "<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    assert learned_of(talk) == ["four<|im_end|>"]
    without = list(Corpus(write_lines(tmp_path / "b.jsonl", {"q": "two? ", "a": "2"}), keys=keys).documents())
    assert without == [Document("two? 2", ((5, 6),))]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a"}\n{"txt": "b"}\n', "data.jsonl: line 2: has neither 'text', nor 'prompt' and 'answer', nor "),
        ('{"text": "a"}\n\n{"text": 3}\n', "data.jsonl: line 3: text: should be a string, not 3"),
        ('{"text": "a"\n', "data.jsonl: line 1: is not JSON: "),
        ("[1]\n", "data.jsonl: line 1: is not an object with keys"),
        ('{"messages": "hello"}\n', "line 1: messages: should be a list of messages with role and content"),
        ('{"messages": [{"role": "user", "content": "x"}]}\n', "is a conversation, and there is no tokenizer with"),
        ('{"text": ""}\n', "has no text in any of its records"),
        ("\n", "has no text in any of its records"),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "data.jsonl").write_text(content)
    with pytest.raises(InputError, match=says.replace("(", "\\(")):
        list(Corpus(tmp_path / "data.jsonl").documents())


def test_a_folder_of_several_kinds_is_not_guessed(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"text": "one"})
    write_lines(tmp_path / "b.jsonl", {"text": "two"})
    corpus = Corpus(tmp_path)
    assert [document.text for document in corpus.documents()] == ["one", "two"]
    assert corpus.done == corpus.total == sum(file.stat().st_size for file in tmp_path.iterdir())
    (tmp_path / "README.md").write_text("about them")
    with pytest.raises(InputError, match=r"several kinds \(jsonl, text\); --data-format says"):
        Corpus(tmp_path)
    assert [document.text for document in Corpus(tmp_path, "jsonl").documents()] == ["one", "two"]
    with pytest.raises(InputError, match=r"has no \.parquet file"):
        Corpus(tmp_path, "parquet")


def test_parquet_and_datasets_on_disk(tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"text": f"row {number}"} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(tmp_path / "plain", num_shards=3)
    shuffled = table.select(range(2999, -1, -1))  # an index over the rows, which is written out on saving
    datasets.DatasetDict({"train": shuffled}).save_to_disk(tmp_path / "splits")
    expected = [row["text"] for row in rows]
    for path, texts in (("data.parquet", expected), ("plain", expected), ("splits", expected[::-1])):
        corpus = Corpus(tmp_path / path)
        assert [document.text for document in corpus.documents()] == texts
        assert corpus.done == corpus.total == 3000
    datasets.DatasetDict({"test": table, "validation": table}).save_to_disk(tmp_path / "no-train")
    with pytest.raises(InputError, match=r"without a split 'train'; it has test, validation"):
        Corpus(tmp_path / "no-train")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(InputError, match=r"bad\.parquet: cannot be read"):
        Corpus(tmp_path / "bad.parquet")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"pip install 'evenflow\[parquet\]'"):
        Corpus(tmp_path / "data.parquet")


def test_the_fingerprint_knows_how_the_data_is_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", {"text": "a", "body": "b"})
    prints = [
        Corpus(path).fingerprint(),
        Corpus(path, "text").fingerprint(),
        Corpus(path, keys=DataKeys(text="body")).fingerprint(),
        Corpus(path, template=lambda: ChatTemplate(tokenizer_with(tmp_path / "m", CHATML))).fingerprint(),
    ]
    assert len(set(prints)) == 4
    assert Corpus(path).fingerprint() == prints[0]
