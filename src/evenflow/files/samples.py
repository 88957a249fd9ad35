"""samples.jsonl: which samples each step trained on, in order; the ledger that shows a resumed run to be the same."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from evenflow.errors import InputError
from evenflow.files.document import Part, checked, json_text, parse_json, read_text, refuse_place
from evenflow.files.parts import Count, Index


class SamplesPart(Part):
    """One line. It has no version of its own: its keys are a promise."""

    step: Count
    samples: list[Index]


def load_samples(path: Path) -> dict[int, tuple[int, ...]]:
    """The samples of each step; a last line without an end is what a killed run was writing, and is passed over.

    Raises:
        InputError: a line is not a step (the line is named).
    """
    lines = enumerate(read_text(path).split("\n")[:-1], 1)
    parts = [_part(line, f"{path}: line {number}") for number, line in lines]
    return {part.step: tuple(part.samples) for part in parts}


def truncate_samples(path: Path, last_step: int) -> None:
    """Drop the steps after `last_step`: a resumed run takes them again.

    The file, which grows with the run, is read a line at a time and cut off in one act.

    Raises:
        InputError: the file cannot be read or written, or has a line that is not a step (the line is named).
        FaultError: the disk failed.
    """
    kept, where = 0, str(path)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}: line {number}"
                if not line.endswith(b"\n") or _part(line.decode(), where).step > last_step:
                    break
                kept += len(line)
        os.truncate(path, kept)
    except OSError as error:
        refuse_place(path, error)
    except UnicodeDecodeError:
        raise InputError(f"{where}: is not UTF-8 text") from None


def _part(line: str, where: str) -> SamplesPart:
    return checked(SamplesPart, parse_json(line, where), where)


def samples_line(step: int, samples: Sequence[int]) -> str:
    """One step as a line of JSON."""
    return json_text({"step": step, "samples": list(samples)}, indented=False)
