"""Writes the golden programs anew: `python -m tests.golden.write`; then read the diff as you read code."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from evenflow.program import (
    Program,
    action_text,
    build_program,
    default_stage_rank,
    evaluation_program,
    ranks_text,
    stages_of,
)

FOLDER = Path(__file__).parent
FORWARD_ONLY = "forward-only"


class Case(NamedTuple):
    """One program; `reduced` ties the first stage to the last and adds gradients over replicas."""

    schedule: str
    ranks: int
    microbatches: int
    reduced: bool = False


# A new schedule needs none: its picture and the property tests hold it. One or two small cases make good reading.
CASES = [
    Case("1f1b", 2, 2),
    Case("1f1b", 2, 4),
    Case("1f1b", 3, 2),
    Case("1f1b", 3, 5),
    Case("1f1b", 4, 6),
    Case("1f1b", 3, 2, reduced=True),
    Case("gpipe", 2, 3),
    Case("gpipe", 3, 2),
    Case("gpipe", 3, 4),
    Case("gpipe", 4, 4),
    Case("interleaved", 2, 2),
    Case("interleaved", 2, 4),
    Case("interleaved", 2, 2, reduced=True),
    Case("zb-h1", 2, 3),
    Case("zb-h1", 3, 4),
    Case("zb-h2", 2, 3),
    Case("zb-h2", 3, 5),
    Case("zb-v", 2, 2),
    Case("zb-v", 2, 3, reduced=True),
    Case(FORWARD_ONLY, 3, 3),
]


def path_of(case: Case) -> Path:
    """The file of one case."""
    more = "-reduced" if case.reduced else ""
    return FOLDER / f"{case.schedule}-{case.ranks}-ranks-{case.microbatches}-microbatches{more}.txt"


def program_of_case(case: Case) -> Program:
    """Its program."""
    if case.schedule == FORWARD_ONLY:
        return evaluation_program(range(case.ranks), case.microbatches)
    ranks = default_stage_rank(case.schedule, case.ranks)
    tied = [(0, len(ranks) - 1)] if case.reduced else ()
    return build_program(case.schedule, ranks, case.microbatches, reduces=case.reduced, tied=tied)


def golden_text(case: Case) -> str:
    """A header that says what a reader should see, then a line for each rank."""
    program = program_of_case(case)
    header = [
        f"{case.schedule}, {case.ranks} ranks {_stages(program)}, {case.microbatches} microbatches. A line is a rank.",
        "A token is stage, action, microbatch: 1F0 is stage 1's forward of microbatch 0, B its backward,",
        *(
            ["I and W its backward in halves: the input's gradient, then the weights';"]
            if "I0" in _text(program)
            else []
        ),
        "SEND and RECV start a transfer, RELEASE waits until a send is complete and frees what was sent.",
        *([_shared(program)] if case.reduced else []),
        "",
        "Compute actions alone:",
        *(
            f"    rank {rank} | " + " ".join(map(action_text, actions))
            for rank, actions in enumerate(program.compute_order())
        ),
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in header) + "\n" + ranks_text(program.ranks)


def _shared(program: Program) -> str:
    last = program.stages - 1
    where = "" if program.tied_apart else ", on one rank"
    return f"Stages 0 and {last} share weights{where}; gradients are added over replicas."


def _text(program: Program) -> str:
    return ranks_text(program.compute_order())


def _stages(program: Program) -> str:
    if program.stages == len(program.ranks):
        return "with one stage each"
    held = [" and ".join(map(str, stages_of(program.stage_rank, rank))) for rank in range(len(program.ranks))]
    return f"with stages {', '.join(held)}"


if __name__ == "__main__":
    for case in CASES:
        path_of(case).write_text(golden_text(case))
