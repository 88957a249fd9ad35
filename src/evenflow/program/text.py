"""A program as text, one line for each rank, and back: `0F0 0SEND_F0 0RECV_B0 0B0 NORM STEP`."""

from __future__ import annotations

import re

from evenflow.errors import ProgramError
from evenflow.program.actions import (
    Action,
    Backward,
    Forward,
    Norm,
    ReceiveBackward,
    ReceiveForward,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    StageAction,
    Step,
)

_STAGE_WORDS: dict[str, type[StageAction]] = {
    "F": Forward,
    "B": Backward,
    "SEND_F": SendForward,
    "RECV_F": ReceiveForward,
    "SEND_B": SendBackward,
    "RECV_B": ReceiveBackward,
    "RELEASE_F": ReleaseForward,
    "RELEASE_B": ReleaseBackward,
}
_RANK_WORDS: dict[str, type[Norm] | type[Step]] = {"NORM": Norm, "STEP": Step}
_WORD_OF_STAGE = {kind: word for word, kind in _STAGE_WORDS.items()}
_WORD_OF_RANK = {kind: word for word, kind in _RANK_WORDS.items()}
_TOKEN = re.compile(r"(\d+)([A-Z]+(?:_[FB])?)(\d+)")


def action_text(action: Action) -> str:
    """The action's token."""
    if isinstance(action, Norm | Step):
        return _WORD_OF_RANK[type(action)]
    return f"{action.stage}{_WORD_OF_STAGE[type(action)]}{action.microbatch}"


def action_kind(action: Action) -> str:
    """The action's word without stage and microbatch: `F`, `SEND_B`, `STEP`."""
    if isinstance(action, Norm | Step):
        return _WORD_OF_RANK[type(action)]
    return _WORD_OF_STAGE[type(action)]


def parse_action(token: str) -> Action:
    """Read one token.

    Raises:
        ProgramError: the token is not an action.
    """
    if token in _RANK_WORDS:
        return _RANK_WORDS[token]()
    match = _TOKEN.fullmatch(token)
    if match is None or match[2] not in _STAGE_WORDS:
        words = ", ".join([*_STAGE_WORDS, *_RANK_WORDS])
        raise ProgramError(f"{token!r} is not an action; actions look like 2F0 and their words are {words}")
    return _STAGE_WORDS[match[2]](int(match[1]), int(match[3]))


def ranks_text(ranks: tuple[tuple[Action, ...], ...]) -> str:
    """All ranks' actions, a line for each rank."""
    return "".join(" ".join(map(action_text, actions)) + "\n" for actions in ranks)


def parse_ranks(text: str) -> tuple[tuple[Action, ...], ...]:
    """Read what `ranks_text` wrote; empty lines and lines that begin with # are passed over.

    Raises:
        ProgramError: a token is not an action (the line is named).
    """
    ranks: list[tuple[Action, ...]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            ranks.append(tuple(map(parse_action, line.split())))
        except ProgramError as error:
            raise ProgramError(f"line {number}: {error}") from None
    return tuple(ranks)
