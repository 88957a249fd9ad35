"""Conversations as one text, by the chat template beside the model's tokenizer, and where in it the answers are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evenflow.errors import InputError, first_line
from evenflow.train.document import Document

Message = Mapping[str, Any]

_ANSWERS = "assistant"
_MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TEMPLATE_FILE = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        folder: the tokenizer's.

    Raises:
        InputError: the tokenizer cannot be loaded, or has no template.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer  # seconds to import, and plain text needs it not

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except Exception as error:  # anything: it parses files of a dozen formats
            raise InputError(f"the tokenizer in {folder} cannot be read ({first_line(error)})") from None
        template = self._tokenizer.chat_template
        if not isinstance(template, str):
            raise InputError(
                f"the tokenizer in {folder} has no chat template; a {_TEMPLATE_FILE} beside it would do, or data with "
                "a prompt and an answer, which needs none"
            )
        self.text = template

    def document(self, messages: Sequence[Message]) -> Document:
        """A conversation; learned is what the assistant says, with what ends its turn.

        Raises:
            InputError: the template refuses it, or it has no answer to learn.
        """
        if not any(message.get("role") == _ANSWERS for message in messages):
            raise InputError(f"the conversation has no message of role {_ANSWERS!r}, so there is nothing to learn")
        if _MARKS_ANSWERS.search(self.text):
            return self._marked(messages)
        text = self._render(messages)
        learned = []
        for index, message in enumerate(messages):
            if message.get("role") != _ANSWERS:
                continue
            begin = len(before) if text.startswith(before := self._render(messages[:index], prompts=True)) else None
            end = len(after) if text.startswith(after := self._render(messages[: index + 1])) else None
            # Templates may show an earlier answer otherwise than the last, as without its reasoning: that is read only.
            if begin is not None and end is not None and begin < end:
                learned.append((begin, begin + len(text[begin:end].rstrip())))
        if not learned:
            raise InputError("the chat template does not show where the answers are; one with {% generation %} would")
        return Document(text, tuple(learned), is_closed=True)

    def _marked(self, messages: Sequence[Message]) -> Document:
        """By a template that says itself what the assistant generates."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self.text,
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
            )
        except Exception as error:  # jinja's own errors, and whatever a template raises
            raise InputError(f"the chat template refuses the conversation ({first_line(error)})") from None
        return Document(texts[0], tuple((begin, end) for begin, end in spans[0]), is_closed=True)

    def _render(self, messages: Sequence[Message], prompts: bool = False) -> str:
        """The text of some messages; `prompts` has it end where the next answer begins."""
        if not messages:
            return ""
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=prompts
            )
        except Exception as error:  # jinja's own errors, and whatever a template raises
            raise InputError(f"the chat template refuses the conversation ({first_line(error)})") from None
        return text


def has_chat_template(folder: Path) -> bool:
    """Whether a tokenizer's folder says how conversations are written."""
    if (folder / _TEMPLATE_FILE).is_file():
        return True
    try:
        return '"chat_template"' in (folder / _CONFIG).read_text()
    except (OSError, UnicodeDecodeError):
        return False
