"""Predicts step time and peak memory of published configurations, and holds them against what was measured.

`python -m benchmarks.published [CSV] [--planner] [--json]`. Predictions read the configuration's columns alone. Memory
is what is allocated on the fullest rank (named in `worst_rank`), or what the row's figure is: the last rank's, or what
the driver shows (reserved). They are closed forms (`cost.pinned`); with `--planner` rows are predicted by the path of
`evenflow plan` too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.published_planned import Planned, Unplanned, compared, planned
from benchmarks.published_rows import Unpredictable, complete, figure, read_job, read_rows
from evenflow.cost.pinned import Pinned, peak_bytes, rank_bytes, step_seconds, worst_rank
from evenflow.cost.roofline import Roofline
from evenflow.errors import InputError

DATA = Path(__file__).parent / "data" / "published.csv"
Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Prediction:
    row: int
    step_time_s: float | None
    peak_memory_bytes: float | None
    skipped: str | None
    imputed: tuple[str, ...] = ()
    job: Pinned | None = None
    worst_rank: int | None = None
    reserved_bytes: float | None = None


def predict(rows: Sequence[Row], roofline: Roofline) -> list[Prediction]:
    found = []
    for number, row in enumerate(map(complete, rows)):
        try:
            found.append(_predict_row(number, row, roofline))
        except Unpredictable as error:
            found.append(Prediction(number, None, None, str(error)))
    return found


def _predict_row(number: int, row: Row, roofline: Roofline) -> Prediction:
    job, imputed = read_job(row)
    memory, worst = peak_bytes(job, *_memory_figure(row)), worst_rank(job)
    reserved = rank_bytes(job, worst).reserved
    return Prediction(number, step_seconds(job, roofline), memory, None, imputed, job, worst, reserved)


def _memory_figure(row: Row) -> tuple[bool, bool]:
    """Of what a row's memory is: of the last rank, as the driver shows it or its allocator with what it keeps."""
    kind = row["memory_kind"].lower()
    return "last" in kind, any(word in kind for word in ("smi", "reserved", "driver"))


def is_measured(row: Row) -> bool:
    """Whether somebody ran it: other rows' figures are worked out, and say nothing of a prediction."""
    return row["measured"].lower() != "no"


def measured_step(row: Row, job: Pinned) -> float | None:
    """As printed, or from the printed rate by the row's own convention of FLOPs."""
    if seconds := _measured(row, "step_time_s"):
        return seconds
    devices = job.tp * job.pp * job.dp * job.cp
    flops = job.flops(is_hardware=row["flops_kind"] == "hardware")
    if rate := _measured(row, "tflops_per_gpu"):
        return flops / (rate * 1e12 * devices)
    if share := _measured(row, "mfu"):
        return flops / (share / 100 * job.device.half_flops * devices)
    return None


def measured_bytes(row: Row) -> float | None:
    if row["memory_kind"] == "analytic":
        return None
    size = _measured(row, "peak_mem_gib")
    return size and size * (1e9 if row["memory_unit"] == "GB" else 2**30)


def _measured(row: Row, name: str) -> float | None:
    try:
        return figure(row, name)
    except Unpredictable:  # `unreadable` says so
        return None


def unreadable(row: Row) -> list[str]:
    """Why a row's measured figures are not compared."""
    found = []
    for name in ("step_time_s", "tflops_per_gpu", "mfu", "peak_mem_gib"):
        try:
            figure(row, name)
        except Unpredictable as error:
            found.append(str(error))
    return found


def is_tested(row: Row) -> bool:
    """Half of the rows, by a hash of the configuration: figures are fitted on the others."""
    return configuration_hash(row)[0] % 2 == 1


def configuration_hash(row: Row) -> bytes:
    """The same for rows that were run alike, so that no configuration is on both sides of a cut."""
    names = ("source", "model", "gpu", "gpus", "seq", "micro_batch", "global_batch", "tp", "pp", "schedule")
    return hashlib.sha256("|".join(row[name] for name in names).encode()).digest()


def errors(rows: Sequence[Row], predictions: Sequence[Prediction]) -> list[tuple[Row, float | None, float | None]]:
    """Relative absolute errors of step time and memory of each row that was predicted and measured."""
    found: list[tuple[Row, float | None, float | None]] = []
    for row, one in zip(rows, predictions, strict=True):
        if one.job is None or one.step_time_s is None or not is_measured(row):
            continue
        seconds, size = measured_step(row, one.job), measured_bytes(row)
        found.append((
            row,
            abs(one.step_time_s / seconds - 1) if seconds else None,
            abs(one.peak_memory_bytes / size - 1) if size and one.peak_memory_bytes is not None else None,
        ))  # fmt: skip
    return found


def sweeps(rows: Sequence[Row], predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Rank correlation and regret of each sweep; identical configurations count once, by their median."""
    ids = sorted({row["sweep"] for row in rows if row["sweep"]})
    found: list[dict[str, Any]] = []
    for sweep in ids:
        groups: dict[str, tuple[float, list[float]]] = {}
        for row, one in zip(rows, predictions, strict=True):
            if row["sweep"] != sweep or one.job is None or one.step_time_s is None or not is_measured(row):
                continue
            if seconds := measured_step(row, one.job):
                groups.setdefault(repr(one.job), (one.step_time_s, []))[1].append(seconds)
        points = [(ours, median(theirs)) for ours, theirs in groups.values()]
        if len(points) > 1:
            picked = min(points)[1] / min(theirs for _, theirs in points) - 1
            found.append(
                {"sweep": sweep, "rows": len(points), "rank_correlation": _agreement(points), "regret": picked}
            )
    return found


def _agreement(points: Sequence[tuple[float, float]]) -> float | None:
    """Kendall's rank correlation over pairs that differ by more than 3% as measured."""
    signs = [
        1 if (a[0] - b[0]) * (a[1] - b[1]) > 0 else -1
        for index, a in enumerate(points)
        for b in points[:index]
        if abs(a[1] / b[1] - 1) > 0.03
    ]
    return sum(signs) / len(signs) if signs else None


def _summary(values: Sequence[float]) -> dict[str, float | int | None]:
    if not values:
        return {"rows": 0, "median": None, "p90": None}
    ordered = sorted(values)
    return {"rows": len(ordered), "median": median(ordered), "p90": ordered[int(0.9 * (len(ordered) - 1))]}


def report(rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, Any]:
    rows = list(map(complete, rows))
    compared = errors(rows, predictions)
    imputed = {id(row): bool(one.imputed) for row, one in zip(rows, predictions, strict=True)}
    groups = {"all": lambda _: True, "nothing imputed": lambda row: not imputed[id(row)],
              "something imputed": lambda row: imputed[id(row)],
              "micro batch and recompute stated": lambda row: bool(row["micro_batch"] and row["recompute"]),
              "either not stated": lambda row: not (row["micro_batch"] and row["recompute"]),
              "fitted half": lambda row: not is_tested(row), "tested half": is_tested}  # fmt: skip
    sources = []
    for source in sorted({row["source"] for row in rows}):
        own = [one for row, one in zip(rows, predictions, strict=True) if row["source"] == source]
        reasons: dict[str, int] = {}
        for one in own:
            if one.skipped:
                reasons[one.skipped] = reasons.get(one.skipped, 0) + 1
        unread = [reason for row in rows if row["source"] == source for reason in unreadable(row)]
        sources.append({
            "source": source, "predicted": sum(one.skipped is None for one in own), "skipped": reasons,
            "not_compared": {reason: unread.count(reason) for reason in unread},
            "step_time": _summary([s for row, s, _ in compared if row["source"] == source and s is not None]),
            "memory": _summary([m for row, _, m in compared if row["source"] == source and m is not None]),
        })  # fmt: skip
    return {
        "predictions": [
            {"row": one.row, "step_time_s": one.step_time_s, "peak_memory_bytes": one.peak_memory_bytes,
             "skipped": one.skipped, "imputed": list(one.imputed), "worst_rank": one.worst_rank,
             "reserved_memory_bytes": one.reserved_bytes} for one in predictions
        ],
        "sources": sources,
        "step_time": {k: _summary([s for r, s, _ in compared if s is not None and f(r)]) for k, f in groups.items()},
        "memory": {k: _summary([m for r, _, m in compared if m is not None and f(r)]) for k, f in groups.items()},
        "sweeps": (swept := sweeps(rows, predictions)),
        "regret": median(float(str(one["regret"])) for one in swept) if swept else None,
        "coverage": _coverage(rows, predictions),
        "costs": {"step_time": "analytic", "memory": "analytic", "roofline": "assumed", "overlap": "assumed"},
    }  # fmt: skip


def _coverage(rows: Sequence[Row], predictions: Sequence[Prediction]) -> float | None:
    """The part predicted of the rows whose dimensions are given or in a preset, and whose technique is modelled."""
    asked = [
        one
        for row, one in zip(rows, predictions, strict=True)
        if not row["not_modelled"] and "dimensions of" not in (one.skipped or "")
    ]
    return sum(one.skipped is None for one in asked) / len(asked) if asked else None


def _percent(value: object) -> str:
    return f"{100 * value:.1f}%" if isinstance(value, float) else "-"


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "-"


def show(found: dict[str, Any]) -> None:
    def line(name: str, one: dict[str, Any]) -> str:
        return f"{name}: {one['rows']} rows, median {_percent(one['median'])}, 90th {_percent(one['p90'])}"

    for source in found["sources"]:
        print(f"{source['source']}: {source['predicted']} predicted")
        for reason, count in source["skipped"].items():
            print(f"  skipped {count}: {reason}")
        for reason, count in source["not_compared"].items():
            print(f"  not compared {count}: {reason}")
        print(line("  step time", source["step_time"]))
        print(line("  memory", source["memory"]))
    for what in ("step_time", "memory"):
        for name, one in found[what].items():
            print(line(f"{what}, {name}", one))
    for one in found["sweeps"]:
        print(f"sweep {one['sweep']}: {one['rows']} layouts, rank correlation {_number(one['rank_correlation'])}, "
              f"regret {_percent(one['regret'])}")  # fmt: skip
    print(f"median regret {_percent(found['regret'])}; predicted {_percent(found['coverage'])} of the rows whose "
          f"dimensions are known and whose technique is modelled")  # fmt: skip
    print("step time and memory are analytic; the roofline's shares and what overlaps are assumed")


def planner_report(rows: Sequence[Row], predictions: Sequence[Prediction], roofline: Roofline) -> dict[str, Any]:
    """The same rows by the planner's path: how far it is from the closed forms, and both from what was measured."""
    plans: list[tuple[Row, Prediction, Planned]] = []
    reasons: dict[str, int] = {}
    for row, one in zip(rows, predictions, strict=True):
        if one.job is None:
            continue
        try:
            plans.append((row, one, planned(one.job, roofline)))
        except Unplanned as error:
            reasons[str(error)] = reasons.get(str(error), 0) + 1
    by_plan = [replace(one, step_time_s=plan.step_s, peak_memory_bytes=plan.peak_bytes(*_memory_figure(row)))
               for row, one, plan in plans]  # fmt: skip
    has_bytes = {one.row for one in by_plan if one.peak_memory_bytes is not None}
    closed = [one if one.row in has_bytes else replace(one, peak_memory_bytes=None) for _, one, _ in plans]
    held = {
        "planner": errors([row for row, _, _ in plans], by_plan),
        "closed forms": errors([row for row, _, _ in plans], closed),
    }
    distinct = {repr(one.job): (one.row, one.job, plan, one.step_time_s, peak_bytes(one.job))
                for _, one, plan in plans if one.job and one.step_time_s}  # fmt: skip
    return {
        "rows": len(plans),
        "configurations": len(distinct),
        "skipped": reasons,
        "predictions": [{"row": one.row, "step_time_s": one.step_time_s, "peak_memory_bytes": one.peak_memory_bytes}
                        for one in by_plan],
        "difference": compared(list(distinct.values())),
        "measured": {
            name: {"step_time": _summary([seconds for _, seconds, _ in own if seconds is not None]),
                   "memory": _summary([size for _, _, size in own if size is not None])}
            for name, own in held.items()
        },
    }  # fmt: skip


def show_planner(found: dict[str, Any]) -> None:
    print(f"planner's path: {found['rows']} rows, {found['configurations']} configurations")
    for reason, count in found["skipped"].items():
        print(f"  not planned {count}: {reason}")
    for order, own in found["difference"].items():
        for what, one in own.items():
            if one["rows"]:
                print(f"  {what} beside the closed forms', {order}: {one['rows']} configurations, median "
                      f"{_percent(one['median'])}, 90th {_percent(one['p90'])}, worst {_percent(one['worst'])} "
                      f"(row {one['worst_row']})")  # fmt: skip
    for name, own in found["measured"].items():
        for what, one in own.items():
            print(f"  {name} against measured, {what}: {one['rows']} rows, median {_percent(one['median'])}, "
                  f"90th {_percent(one['p90'])}")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the errors; 0, or 2 where the CSV is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", nargs="?", type=Path, default=DATA)
    parser.add_argument("--planner", action="store_true", help="predict by the path of `evenflow plan` too")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    try:
        rows = read_rows(asked.csv)
    except InputError as error:
        print(f"benchmarks.published: {error}", file=sys.stderr)
        return error.exit_code
    roofline = Roofline()
    predictions = predict(rows, roofline)
    found = report(rows, predictions)
    if asked.planner:
        found["planner"] = planner_report(rows, predictions, roofline)
    if asked.json:
        print(json.dumps(found))
        return 0
    show(found)
    if asked.planner:
        show_planner(found["planner"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
