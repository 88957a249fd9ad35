"""Predicts the published times of single layers, to which nothing is fitted, and prints the errors.

`python -m benchmarks.layer_times [CSV] [--json]`. Each row is one block: tp, microbatch, sequence and what is computed
again; its backward holds what the forward is computed again for.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from evenflow.cost.pinned import Pinned, Redone, layer_seconds
from evenflow.cost.roofline import Roofline
from evenflow.spec.accelerators import find_accelerator
from evenflow.spec.architecture import Architecture

DATA = Path(__file__).parent / "data" / "layer_times.csv"


def job_of(row: dict[str, str]) -> Pinned:
    """The row's block as a job of one block."""
    hidden, heads = (int(re.findall(rf"\b{name}=(\d+)", row["model"])[0]) for name in ("h", "a"))
    mode = row["mode"].lower()
    redone: Redone = "full" if mode.startswith("full") else "attention" if "selective" in mode else "none"
    block = Architecture(
        row["model"], row["source"], 1, hidden, 4 * hidden, heads, heads, hidden // heads, 51200,
        gated=False, biased=True, tied=True,
    )  # fmt: skip
    micro_batch = int(row["micro_batch"])
    return Pinned(
        block, find_accelerator(row["gpu"]), tp=int(row["tp"]), pp=1, dp=1, cp=1, ep=1, vpp=1, order="1f1b",
        micro_batch=micro_batch, global_batch=micro_batch, seq=int(row["seq"]), redone=redone, zero=0,
        is_eighth=False, is_flash=False, is_sequence_parallel="no sp" not in mode,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayerTime:
    """A row's predicted milliseconds, and their relative errors against what was measured."""

    mode: str
    forward_ms: float
    backward_ms: float
    forward_error: float
    backward_error: float


def compare(rows: Sequence[dict[str, str]], roofline: Roofline) -> list[LayerTime]:
    """Predicted and measured milliseconds of each row, with relative errors."""
    found: list[LayerTime] = []
    for row in rows:
        forward, backward = (1e3 * seconds for seconds in layer_seconds(job_of(row), roofline))
        found.append(
            LayerTime(
                row["mode"], forward, backward,
                forward / float(row["forward_ms"]) - 1, backward / float(row["backward_ms"]) - 1,
            )
        )  # fmt: skip
    return found


def main() -> None:
    """Print one line a row, and the worst error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", nargs="?", type=Path, default=DATA)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with arguments.csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = compare(rows, Roofline())
    errors = [abs(error) for one in found for error in (one.forward_error, one.backward_error)]
    if arguments.json:
        print(json.dumps({"rows": [asdict(one) for one in found], "median": median(errors), "worst": max(errors)}))
        return
    for one in found:
        print(f"{one.mode:20} forward {one.forward_ms:5.2f} ms ({one.forward_error:+.1%}), "
              f"backward {one.backward_ms:5.2f} ms ({one.backward_error:+.1%})")  # fmt: skip
    print(f"median {median(errors):.1%}, worst {max(errors):.1%}")


if __name__ == "__main__":
    main()
