"""A watch blames who works, so what waits for another rank has to say so, and nothing else may."""

from __future__ import annotations

from evenflow.execute.notes import notes_of
from evenflow.program import Program, build_program, default_stage_rank


def waiting(program: Program, rank: int) -> list[str]:
    notes = notes_of(program, rank)
    assert len(notes) == len(program.ranks[rank])
    return [note[1:].rstrip(b"\0").decode() for note in notes if note[0]]


def test_what_may_wait_for_another_rank_says_so() -> None:
    program = build_program("1f1b", default_stage_rank("1f1b", 2), 1)
    assert waiting(program, 0) == ["0B0", "0RELEASE_F0", "NORM", "STEP"]
    assert waiting(program, 1) == ["1F0", "1RELEASE_B0", "NORM", "STEP"]


def test_a_stage_on_the_same_rank_is_not_waited_for() -> None:
    assert waiting(build_program("gpipe", (0,), 2), 0) == ["NORM", "STEP"]
