"""A program as text, one line for each rank, and back: `0F0 0SEND_F0 0RECV_B0 0I0 0W0 NORM STEP`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evenflow.errors import ProgramError
from evenflow.program.actions import (
    Action,
    Backward,
    Compute,
    Forward,
    InputBackward,
    MicrobatchAction,
    Norm,
    Order,
    ReceiveBackward,
    ReceiveForward,
    ReduceGrad,
    ReduceTied,
    Reduction,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    Step,
    WeightBackward,
)

_MICROBATCH_WORDS: dict[str, type[MicrobatchAction]] = {
    "F": Forward,
    "B": Backward,
    "I": InputBackward,
    "W": WeightBackward,
    "SEND_F": SendForward,
    "RECV_F": ReceiveForward,
    "SEND_B": SendBackward,
    "RECV_B": ReceiveBackward,
    "RELEASE_F": ReleaseForward,
    "RELEASE_B": ReleaseBackward,
}
_STAGE_WORDS: dict[str, type[Reduction]] = {"REDUCE_TIED": ReduceTied, "REDUCE_GRAD": ReduceGrad}
_RANK_WORDS: dict[str, type[Norm] | type[Step]] = {"NORM": Norm, "STEP": Step}
_WORDS: dict[type[Action], str] = {
    kind: word for words in (_MICROBATCH_WORDS, _STAGE_WORDS, _RANK_WORDS) for word, kind in words.items()
}
# `\d` would take the digits of other scripts, too, and Python refuses to read numbers of thousands of them.
_TOKEN = re.compile(r"([0-9]{1,9})([A-Z]+(?:_[A-Z]+)?)([0-9]{0,9})")
_NO_ACTIONS = "-"  # the line of a rank that has none
_SHOWN = 40  # characters of a token that is none


def action_text(action: Action) -> str:
    """The action's token."""
    word = _WORDS[type(action)]
    if isinstance(action, Norm | Step):
        return word
    if isinstance(action, ReduceTied | ReduceGrad):
        return f"{action.stage}{word}"
    return f"{action.stage}{word}{action.microbatch}"


def action_kind(action: Action) -> str:
    """The action's word without stage and microbatch: `F`, `SEND_B`, `STEP`."""
    return _WORDS[type(action)]


def parse_action(token: str) -> Action:
    """Read one token.

    Raises:
        ProgramError: the token is not an action.
    """
    if token in _RANK_WORDS:
        return _RANK_WORDS[token]()
    match = _TOKEN.fullmatch(token)
    if match is not None and match[2] in _MICROBATCH_WORDS and match[3]:
        return _MICROBATCH_WORDS[match[2]](int(match[1]), int(match[3]))
    if match is not None and match[2] in _STAGE_WORDS and not match[3]:
        return _STAGE_WORDS[match[2]](int(match[1]))
    words = ", ".join([*_MICROBATCH_WORDS, *_STAGE_WORDS, *_RANK_WORDS])
    raise ProgramError(f"{_shown(token)} is not an action; actions look like 2F0 and their words are {words}")


def ranks_text(ranks: tuple[tuple[Action, ...], ...]) -> str:
    """All ranks' actions, a line for each rank; that of a rank without actions is `-`."""
    return "".join((" ".join(map(action_text, actions)) or _NO_ACTIONS) + "\n" for actions in ranks)


def order_text(order: Order) -> tuple[str, ...]:
    """Each rank's compute actions as one line of tokens."""
    return tuple(" ".join(map(action_text, actions)) for actions in order)


def parse_order(lines: Sequence[str]) -> Order:
    """Read what `order_text` wrote.

    Raises:
        ProgramError: a token is not a compute action (rank and token are named).
    """
    return tuple(
        tuple(parse_compute(token, f"rank {rank}") for token in line.split()) for rank, line in enumerate(lines)
    )


def parse_compute(token: str, where: str) -> Compute:
    """Read the token of a compute action.

    Raises:
        ProgramError: it is none; `where` begins the text.
    """
    try:
        action = parse_action(token)
    except ProgramError:
        action = None
    if not isinstance(action, Forward | Backward | InputBackward | WeightBackward):
        raise ProgramError(f"{where}: {_shown(token)} is not a compute action; 2F0, 2B0, 2I0 or 2W0 are")
    return action


def _shown(token: str) -> str:
    """A wrong token, short and on one line."""
    return repr(token) if len(token) <= _SHOWN else f"{token[:_SHOWN]!r}... ({len(token)} characters)"


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
            ranks.append(() if line.strip() == _NO_ACTIONS else tuple(map(parse_action, line.split())))
        except ProgramError as error:
            raise ProgramError(f"line {number}: {error}") from None
    return tuple(ranks)
