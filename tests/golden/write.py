"""Writes the golden programs anew: `python -m tests.golden.write`; then read the diff as you read code."""

from __future__ import annotations

from pathlib import Path

from evenflow.program import action_text, build_program, ranks_text

FOLDER = Path(__file__).parent
CASES = [
    ("1f1b", 2, 2),
    ("1f1b", 2, 4),
    ("1f1b", 3, 2),
    ("1f1b", 3, 5),
    ("1f1b", 4, 6),
    ("gpipe", 2, 3),
    ("gpipe", 3, 2),
    ("gpipe", 3, 4),
    ("gpipe", 4, 4),
]


def path_of(schedule: str, ranks: int, microbatches: int) -> Path:
    """The file of one case."""
    return FOLDER / f"{schedule}-{ranks}-ranks-{microbatches}-microbatches.txt"


def golden_text(schedule: str, ranks: int, microbatches: int) -> str:
    """A header that says what a reader should see, then a line for each rank."""
    program = build_program(schedule, ranks, microbatches)
    header = [
        f"{schedule}, {ranks} ranks with one stage each, {microbatches} microbatches. A line is a rank.",
        "A token is stage, action, microbatch: 1F0 is stage 1's forward of microbatch 0, B its backward,",
        "SEND and RECV start a transfer, RELEASE waits until a send is complete and frees what was sent.",
        "",
        "Compute actions alone:",
        *(
            f"    rank {rank} | " + " ".join(map(action_text, actions))
            for rank, actions in enumerate(program.compute_order())
        ),
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in header) + "\n" + ranks_text(program.ranks)


if __name__ == "__main__":
    for case in CASES:
        path_of(*case).write_text(golden_text(*case))
