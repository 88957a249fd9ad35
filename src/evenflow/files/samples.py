"""samples.jsonl: which samples each step trained on, in order; the ledger that shows a resumed run to be the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evenflow.files.document import Part, checked, json_text, parse_json, read_text, refuse_place, write_text
from evenflow.files.parts import Count, Index


class SamplesPart(Part):
    """One line. It has no version of its own: its keys are a promise."""

    step: Count
    samples: list[Index]


def append_samples(path: Path, step: int, samples: Sequence[int]) -> None:
    """Add a step to the file, in one write.

    Raises:
        InputError: the place cannot be written to.
        FaultError: the disk failed or is full.
    """
    try:
        with path.open("ab", buffering=0) as file:
            file.write(_line(step, samples).encode())
    except OSError as error:
        refuse_place(path, error)


def load_samples(path: Path) -> dict[int, tuple[int, ...]]:
    """The samples of each step; a last line without an end is what a killed run was writing, and is passed over.

    Raises:
        InputError: a line is not a step (the line is named).
    """
    lines = enumerate(read_text(path).split("\n")[:-1], 1)
    parts = [checked(SamplesPart, parse_json(line, f"{path}: line {n}"), f"{path}: line {n}") for n, line in lines]
    return {part.step: tuple(part.samples) for part in parts}


def truncate_samples(path: Path, last_step: int) -> None:
    """Drop the steps after `last_step`, atomically: a resumed run takes them again.

    Raises:
        InputError: the file has a line that is not a step.
    """
    kept = {step: samples for step, samples in load_samples(path).items() if step <= last_step}
    write_text(path, "".join(_line(step, samples) for step, samples in kept.items()))


def _line(step: int, samples: Sequence[int]) -> str:
    return json_text({"step": step, "samples": list(samples)}, indented=False)
