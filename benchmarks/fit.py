"""Fits the roofline's few figures on half of the published rows and prints the errors on both halves.

`python -m benchmarks.fit`. Which half a row is in is a hash of its configuration (`published.is_tested`). The figures
are shares and latencies common to all devices and sources; each is scaled in turn for as long as the mean absolute
logarithm of predicted over measured step time on the fitted half, each source weighing the same, shrinks.
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import asdict, replace

from benchmarks.published import DATA, Row, is_tested, measured_step
from benchmarks.published_rows import Unpredictable, read_job
from evenflow.cost.pinned import Pinned, step_seconds
from evenflow.cost.roofline import Roofline

_HALVES = (("fitted", False), ("tested", True))
# What is possible, and not only shortest on these rows: figures that rows hardly tell apart would run to where they
# mean nothing (a latency of nothing paid for by a slow link).
_RANGES = {
    "matmul": (0.6, 0.95), "depth": (64.0, 512.0), "attention": (0.3, 0.95), "attention_depth": (32.0, 128.0),
    "attention_backward": (2.5, 4.0), "memory": (0.6, 0.9), "launch_s": (5e-6, 40e-6), "link": (0.7, 0.9),
    "network": (0.6, 0.9), "latency_s": (4e-6, 10e-6), "throttle": (0.2, 0.8),
}  # fmt: skip


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
    for factor in (1.2, 1.06):
        is_better = True
        while is_better:
            is_better = False
            for name, value in asdict(best).items():
                for scaled in (value * factor, value / factor):
                    least_of, most_of = _RANGES[name]
                    if not least_of <= scaled <= most_of:
                        continue
                    tried = replace(best, **{name: scaled})
                    if (found := loss(rows, tried)) < least - 1e-5:
                        best, least, is_better = tried, found, True
    return best


def main() -> None:
    """Print the figures found, and the errors on both halves of those in use and of those found."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = load()
    halves = {name: [one for one in rows if is_tested(one[0]) == half] for name, half in _HALVES}
    used, found = Roofline(), fit(halves["fitted"])
    print(found)
    for kind, roofline in (("in use", used), ("found", found)):
        for name, own in halves.items():
            errors = sorted(abs(step_seconds(job, roofline) / seconds - 1) for _, job, seconds in own)
            print(f"{kind}, {name} half: {len(own)} rows, median error {100 * errors[len(errors) // 2]:.1f}%, "
                  f"mean of sources' log errors {loss(own, roofline):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
