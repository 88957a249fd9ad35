"""Changes of a legal program: what a test breaks, and what verify says to it."""

from __future__ import annotations

from dataclasses import replace

from evenflow.errors import ProgramError
from evenflow.program import Action, Program, verify


def without(line, token):
    tokens = line.split()
    tokens.remove(token)
    return " ".join(tokens)


def moved(line, token, before):
    tokens = without(line, token).split()
    tokens.insert(tokens.index(before), token)
    return " ".join(tokens)


def after(line, token, added):
    tokens = line.split()
    tokens.insert(tokens.index(token) + 1, added)
    return " ".join(tokens)


def with_rank(program: Program, rank: int, actions: tuple[Action, ...]) -> Program:
    return replace(program, ranks=(*program.ranks[:rank], actions, *program.ranks[rank + 1 :]))


def refusal_of(program: Program) -> str | None:
    try:
        verify(program)
    except ProgramError as error:
        return str(error)
    return None
