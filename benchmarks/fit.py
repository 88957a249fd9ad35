"""Fits the roofline's few figures on half of the published rows and prints the errors on both halves.

`python -m benchmarks.fit`. Which half a row is in is a hash of its configuration (`published.is_tested`). The figures
are shares and latencies common to all devices and sources; each is scaled in turn for as long as the mean absolute
logarithm of predicted over measured step time on the fitted half, each source weighing the same, shrinks.

It begins at the figures in use. What it finds is taken where both of its errors are less on the tested half too. Errors
of layer times (`benchmarks.layer_times`, to which nothing is fitted) stand beside them.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import median

from benchmarks import layer_times
from benchmarks.published import DATA, Row, is_measured, is_tested, measured_step
from benchmarks.published_rows import Unpredictable, read_job, read_rows
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
_FACTORS = (1.2, 1.06, 1.02)
_GAIN = 1e-5  # of the loss: less is noise


def load() -> list[tuple[Row, Pinned, float]]:
    """Rows that have a prediction and a measured step time."""
    found = []
    for row in read_rows(DATA):
        try:
            job, _ = read_job(row)
        except Unpredictable:
            continue
        seconds = measured_step(row, job)
        if seconds and is_measured(row):
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
    for factor in _FACTORS:
        while (better := sweep(rows, best, factor)) != best:
            best = better
    return best


def sweep(rows: list[tuple[Row, Pinned, float]], best: Roofline, factor: float) -> Roofline:
    """Every figure scaled up and down once, and left where that makes the loss less."""
    least = loss(rows, best)
    for name, value in asdict(best).items():
        least_of, most_of = _RANGES[name]
        for scaled in (value * factor, value / factor):
            if not least_of <= scaled <= most_of:
                continue
            tried = replace(best, **{name: scaled})
            if (found := loss(rows, tried)) < least - _GAIN:
                best, least = tried, found
    return best


def halves() -> dict[str, list[tuple[Row, Pinned, float]]]:
    """The rows that are fitted, and those that are tested."""
    rows = load()
    return {name: [one for one in rows if is_tested(one[0]) == half] for name, half in _HALVES}


def worst_layer_time(roofline: Roofline) -> float:
    """The largest error of a published layer time, relative and absolute."""
    with layer_times.DATA.open(newline="") as file:
        found = layer_times.compare(list(csv.DictReader(file)), roofline)
    return max(abs(error) for one in found for error in (one.forward_error, one.backward_error))


def _median_error(rows: Sequence[tuple[Row, Pinned, float]], roofline: Roofline) -> float:
    return median(abs(step_seconds(job, roofline) / seconds - 1) for _, job, seconds in rows)


def main() -> None:
    """Print the figures found, and the errors on both halves of those in use and of those found."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    own, used = halves(), Roofline()
    found = fit(own["fitted"])
    print(found)
    for kind, roofline in (("in use", used), ("found", found)):
        for name, rows in own.items():
            print(f"{kind}, {name} half: {len(rows)} rows, median error {100 * _median_error(rows, roofline):.1f}%, "
                  f"mean of sources' log errors {loss(rows, roofline):.4f}")  # fmt: skip
        print(f"{kind}, layer times: worst error {100 * worst_layer_time(roofline):.1f}%")
    gains = {name: 1 - loss(rows, found) / loss(rows, used) for name, rows in own.items()}
    print("log errors of what is found, less than those in use by: "
          + ", ".join(f"{100 * gain:.1f}% on the {name} half" for name, gain in gains.items()))  # fmt: skip


if __name__ == "__main__":
    main()
