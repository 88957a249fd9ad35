"""Why: a change of lowering changes what every run does, so whole programs are kept as readable text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evenflow.program import parse_ranks, ranks_text, verify
from tests.golden.write import CASES, FOLDER, golden_text, path_of, program_of_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: path_of(case).stem)
def test_the_program_is_the_one_that_was_read(case):
    kept = path_of(case).read_text()
    actions = "".join(line + "\n" for line in kept.splitlines() if line and not line.startswith("#"))
    assert ranks_text(program_of_case(case).ranks) == actions
    assert golden_text(case) == kept, "only the comment differs: python -m tests.golden.write"


@pytest.mark.parametrize("case", CASES, ids=lambda case: path_of(case).stem)
def test_the_text_itself_is_a_legal_program(case):
    program = replace(program_of_case(case), ranks=parse_ranks(path_of(case).read_text()))
    assert len(program.ranks) == case.ranks
    verify(program)


def test_no_file_is_left_without_its_case():
    assert {path.name for path in FOLDER.glob("*.txt") if "-ranks-" in path.name} == {
        path_of(case).name for case in CASES
    }
