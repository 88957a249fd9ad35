"""Fits the roofline's few figures on half of the published rows and prints the errors on both halves.

`python -m benchmarks.fit`. Which half a row is in is a hash of its configuration (`published.is_tested`). The figures
are shares and latencies common to all devices and sources; each is scaled in turn for as long as the mean absolute
logarithm of predicted over measured step time on the fitted half, each source weighing the same, shrinks.
"""

from __future__ import annotations

import csv
import math
from dataclasses import asdict, replace

from benchmarks.published import DATA, Row, is_tested, measured_step
from benchmarks.published_rows import Unpredictable, read_job
from evenflow.cost.pinned import Pinned, step_seconds
from evenflow.cost.roofline import Roofline

_SHARES = ("matmul", "attention", "memory", "link")


def load() -> list[tuple[Row, Pinned, float]]:
    """Rows that have a prediction and a measured step time."""
    with DATA.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        try:
            job, _ = read_job(row)
        except Unpredictable:
            continue
        seconds = measured_step(row, job)
        if seconds and row["measured"] != "no":
            found.append((row, job, seconds))
    return found


def loss(rows: list[tuple[Row, Pinned, float]], roofline: Roofline) -> float:
    """Mean over sources of their mean absolute logarithm of predicted over measured."""
    by_source: dict[str, list[float]] = {}
    for row, job, seconds in rows:
        by_source.setdefault(row["source"], []).append(abs(math.log(step_seconds(job, roofline) / seconds)))
    return sum(sum(own) / len(own) for own in by_source.values()) / len(by_source)


def fit(rows: list[tuple[Row, Pinned, float]]) -> Roofline:
    """Coordinate descent with shrinking factors."""
    best = Roofline()
    least = loss(rows, best)
    for factor in (1.25, 1.1, 1.04):
        is_better = True
        while is_better:
            is_better = False
            for name, value in asdict(best).items():
                for scaled in (value * factor, value / factor):
                    if name in _SHARES and scaled > 0.95:
                        continue
                    tried = replace(best, **{name: scaled})
                    if (found := loss(rows, tried)) < least - 1e-5:
                        best, least, is_better = tried, found, True
    return best


def main() -> None:
    rows = load()
    fitted = fit([one for one in rows if not is_tested(one[0])])
    print(fitted)
    for name, half in (("fitted", False), ("tested", True)):
        own = [one for one in rows if is_tested(one[0]) == half]
        errors = sorted(abs(step_seconds(job, fitted) / seconds - 1) for _, job, seconds in own)
        print(f"{name} half: {len(own)} rows, median error {100 * errors[len(errors) // 2]:.1f}%, "
              f"mean of sources' log errors {loss(own, fitted):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
