"""Fits the roofline's few figures on half of the published rows and prints the errors on both halves.

`python -m benchmarks.fit`. Which half a row is in is a hash of its configuration (`published.is_tested`). The figures
are shares and latencies common to all devices and sources; each is scaled in turn for as long as the mean absolute
logarithm of predicted over measured step time, each source weighing the same, shrinks.

It begins at the figures in use. What is better on the rows at hand may be so on those alone. So the fitted half is cut
in two by the same hash, and a step is taken only where both parts gain, and more than noise. The tested half decides
nothing: it is looked at when all is found. Errors of layer times (`benchmarks.layer_times`, not fitted to) stand by.
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import asdict, replace
from statistics import mean, median, stdev

from benchmarks import layer_times
from benchmarks.published import DATA, Row, configuration_hash, is_measured, is_tested, measured_step
from benchmarks.published_rows import Unpredictable, read_job, read_rows
from evenflow.cost.pinned import Pinned, step_seconds
from evenflow.cost.roofline import Roofline

Rows = list[tuple[Row, Pinned, float]]
_HALVES = (("fitted", False), ("tested", True))
# What is possible, and not only shortest on these rows: figures that rows hardly tell apart would run to where they
# mean nothing (a latency of nothing paid for by a slow link).
_RANGES = {
    "matmul": (0.6, 0.95), "depth": (64.0, 512.0), "attention": (0.3, 0.95), "attention_depth": (32.0, 128.0),
    "attention_backward": (2.5, 4.0), "memory": (0.6, 0.9), "launch_s": (5e-6, 40e-6), "link": (0.7, 0.9),
    "network": (0.6, 0.9), "latency_s": (4e-6, 10e-6), "throttle": (0.2, 0.8),
}  # fmt: skip
FACTORS = (1.2, 1.06, 1.02)


def load() -> Rows:
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


def loss(rows: Rows, roofline: Roofline) -> float:
    """Mean over sources of their mean absolute logarithm of predicted over measured."""
    return mean(source_losses(rows, roofline).values())


def source_losses(rows: Rows, roofline: Roofline) -> dict[str, float]:
    """Each source's mean absolute logarithm of predicted over measured."""
    found: dict[str, list[float]] = {}
    for row, job, seconds in rows:
        found.setdefault(row["source"], []).append(abs(math.log(step_seconds(job, roofline) / seconds)))
    return {source: mean(own) for source, own in found.items()}


def is_gain(before: dict[str, float], after: dict[str, float]) -> bool:
    """Whether sources gain on the mean by more than that mean's standard error: less is noise.

    Sources are what is counted, since rows of one share machine and software. The rule of one standard error is that of
    Breiman et al. 1984 (Classification and Regression Trees, section 3.4.3).
    """
    gains = [before[source] - after[source] for source in before]
    return mean(gains) > (stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0)


def fit(rows: Rows, best: Roofline) -> Roofline:
    """Coordinate descent from `best` with shrinking factors, on both parts of these rows at once."""
    for factor in FACTORS:
        while (better := sweep(rows, best, factor)) != best:
            best = better
    return best


def parts(rows: Rows) -> tuple[Rows, Rows]:
    """Rows cut in two by their configurations."""
    first, second = ([one for one in rows if configuration_hash(one[0])[1] % 2 == part] for part in (0, 1))
    return first, second


def sweep(rows: Rows, best: Roofline, factor: float) -> Roofline:
    """Every figure scaled up and down once, and left where both parts gain by that."""
    cut = parts(rows)
    least = [source_losses(part, best) for part in cut]
    for name, value in asdict(best).items():
        least_of, most_of = _RANGES[name]
        for scaled in (value * factor, value / factor):
            if not least_of <= scaled <= most_of:
                continue
            tried = replace(best, **{name: scaled})
            found = [source_losses(part, tried) for part in cut]
            if all(map(is_gain, least, found)):
                best, least = tried, found
    return best


def halves() -> dict[str, Rows]:
    """The rows that are fitted, and those that are tested."""
    rows = load()
    return {name: [one for one in rows if is_tested(one[0]) == half] for name, half in _HALVES}


def worst_layer_time(roofline: Roofline) -> float:
    """The largest error of a published layer time, relative and absolute."""
    with layer_times.DATA.open(newline="") as file:
        found = layer_times.compare(list(csv.DictReader(file)), roofline)
    return max(abs(error) for one in found for error in (one.forward_error, one.backward_error))


def _median_error(rows: Rows, roofline: Roofline) -> float:
    return median(abs(step_seconds(job, roofline) / seconds - 1) for _, job, seconds in rows)


def main() -> None:
    """Print the figures found, and the errors on both halves of those in use and of those found."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    own, used = halves(), Roofline()
    found = fit(own["fitted"], used)
    print(found)
    print("what is found is " + ("what is in use" if found == used else "not what is in use"))
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
