"""Our schedules' bubble rates beside those that others have published for the same measured times.

Each row of a CSV names a model, ranks p, microbatches m, and milliseconds of F, B (the half of a backward that makes
the input's gradient), W and a transfer. From these every schedule is built, verified and simulated. Its rate is
(cost - m (F + B + W)) / cost; the cost is the longest span of any rank from its own first compute action to its own
last. Transfers are latency alone, there is no optimizer, and W holds half of what a microbatch keeps.

Where the CSV has a column `bubble_...` with a schedule's published rate, that stands beside ours.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

from evenflow.cli import OneLineParser
from evenflow.cost import LinkCost, RankCost, StageCost, StageMemory
from evenflow.errors import EvenflowError, InputError
from evenflow.program import Compute, build_program, default_stage_rank, even_work, verify
from evenflow.simulate import Hardware, simulate
from evenflow.spec import this_machine
from evenflow.timeline import RankTimeline

CSV = Path(__file__).parent / "data" / "zero_bubble_rates.csv"

# Our schedules and how the CSV's columns call them; ZB-V has none there.
SCHEDULES = {
    "1f1b": "1F1B",
    "interleaved": "1F1B_I",
    "zb-h1": "ZB_H1",
    "zb-h2": "ZB_H2",
    "zb-1p": "ZB_1p",
    "zb-2p": "ZB_2p",
    "zb-v": None,
}

# Blocks of the models of Qi et al. 2023 (arXiv:2401.10241, table 4). Embedding and head count as a block each, and a
# rank of interleaved 1F1B has as many stages as it has blocks: (blocks + 2) / p.
BLOCKS = {"1.5B": 22, "6.2B": 30, "14.6B": 46, "28.3B": 62}
_USUAL_STAGES = 2

_REASON = """\
Interleaved 1F1B: the published figures are what the authors' script gives (sail-sg/zero-bubble-pipeline-parallelism,
megatron/core/pipeline_parallel/interleave.py): there only the first microbatch of a group waits for the gradient that
comes round from rank 0 to rank p - 1. In the drain it is the last microbatch of a group that is late, by p transfers.
Here every microbatch waits for its gradient, so our cost holds 2(pv - 1) transfers, all of a microbatch's way there
and back, and theirs 2(pv - 1) - p. Solved from the rates (v stages a rank; +- is the rounding of the published one):"""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the CSV, in seconds."""

    model: str
    p: int
    m: int
    forward_s: float
    input_s: float
    weight_s: float
    transfer_s: float
    published: dict[str, float]

    @property
    def microbatch_s(self) -> float:
        """All of a rank's compute for one microbatch."""
        return self.forward_s + self.input_s + self.weight_s


@dataclass(frozen=True, slots=True)
class Rate:
    """The bubble rate of one schedule on one row."""

    row: Row
    schedule: str
    stages_per_rank: int
    cost_s: float

    @property
    def ours(self) -> float:
        """The share of the cost in which the slowest rank does not compute."""
        return 1 - self.row.m * self.row.microbatch_s / self.cost_s

    @property
    def published(self) -> float | None:
        """What the CSV has for it."""
        return self.row.published.get(self.schedule)


def main(argv: Sequence[str] | None = None) -> int:
    """Compute all rates, then print a table or one JSON object; returns the exit code."""
    parser = OneLineParser(
        prog="benchmarks.bubbles", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path, nargs="?", default=CSV, metavar="CSV", help="by default the published one")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args(argv)
    begin = time.perf_counter()
    try:
        rates = [rate_of(row, schedule) for row in read_rows(arguments.csv) for schedule in SCHEDULES]
    except EvenflowError as error:
        print(f"benchmarks.bubbles: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    seconds = time.perf_counter() - begin
    if arguments.json:
        print(json.dumps(_json(rates, seconds), allow_nan=False))
    else:
        print("\n".join(_table(rates, seconds)))
    return 0


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV.

    Raises:
        InputError: there is no such file, a column is missing, or a value is none that could be.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            names = set(reader.fieldnames or ())
            missing = [name for name in _COLUMNS if name not in names]
            if missing:
                raise InputError(f"{path} has no column {', '.join(missing)}; {', '.join(_COLUMNS)} are needed")
            rows = [_row(values, f"{path}, line {reader.line_num}") for values in reader]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV: {error}") from error
    if not rows:
        raise InputError(f"{path} has no rows; one for each model and number of microbatches would do")
    return rows


def rate_of(row: Row, schedule: str) -> Rate:
    """Build, verify and simulate a schedule on a row's times, which the stages of a rank share equally."""
    stages_per_rank = {"interleaved": _interleaved_stages(row) or _USUAL_STAGES, "zb-v": 2}.get(schedule, 1)
    stage_rank = default_stage_rank(schedule, row.p, stages_per_rank)
    stages, parts = len(stage_rank), stages_per_rank
    cost = StageCost(
        forward_s=row.forward_s / parts,
        backward_s=(row.input_s + row.weight_s) / parts,
        input_s=row.input_s / parts,
        weight_s=row.weight_s / parts,
    )
    work = replace(even_work(stage_rank, row.m), costs=(cost,) * stages, transfer_s=(row.transfer_s,) * (stages - 1))
    program = build_program(schedule, stage_rank, row.m, work)
    verify(program)
    hardware = Hardware(
        stages=work.costs,
        ranks=(RankCost(0.0, 0.0),) * row.p,
        links=LinkCost(row.transfer_s, inf),
        memory=(StageMemory(0, 0, 0, 0, 1, 1, 0, 0),) * stages,
    )
    cost_s = max(map(_compute_span, simulate(program, hardware).ranks))
    return Rate(row, schedule, stages_per_rank, cost_s)


def _compute_span(rank: RankTimeline) -> float:
    """From a rank's first compute action to its last."""
    spans = [
        (start, end)
        for action, start, end in zip(rank.actions, rank.starts, rank.ends, strict=True)
        if isinstance(action, Compute)
    ]
    return max(end for _, end in spans) - min(start for start, _ in spans)


def _interleaved_stages(row: Row) -> int | None:
    """Stages of a rank under interleaved 1F1B as the paper has them; None where the model is not of its table."""
    stages, left = divmod(BLOCKS.get(row.model, 0) + 2, row.p)
    return stages if row.model in BLOCKS and not left else None


_COLUMNS = ("model", "p", "m", "T_F_ms", "T_B_ms", "T_W_ms", "T_comm_ms")


def _row(values: dict[str, str], where: str) -> Row:
    p, m = _count(values, "p", where), _count(values, "m", where)
    forward_s, input_s, weight_s, transfer_s = (_number(values, name, where) / 1e3 for name in _COLUMNS[3:])
    if forward_s + input_s + weight_s <= 0:
        raise InputError(f"{where}: T_F_ms, T_B_ms and T_W_ms are all zero; a rate needs work")
    columns = {schedule: f"bubble_{name}" for schedule, name in SCHEDULES.items() if name}
    published = {
        schedule: _number(values, column, where)
        for schedule, column in columns.items()
        if (values.get(column) or "").strip()
    }
    return Row(values["model"].strip(), p, m, forward_s, input_s, weight_s, transfer_s, published)


def _number(values: dict[str, str], name: str, where: str) -> float:
    text = values[name].strip()
    try:
        number = float(text)
    except ValueError:
        number = inf
    if not isfinite(number) or number < 0:
        raise InputError(f"{where}: {name} is {text!r}; a number from 0 on would do")
    return number


def _count(values: dict[str, str], name: str, where: str) -> int:
    text = values[name].strip()
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{where}: {name} is {text!r}; a whole number from 1 on would do")
    return int(text)


@dataclass(frozen=True, slots=True)
class _Transfers:
    """How many transfers an interleaved rate holds beside the compute on its critical path."""

    rate: Rate
    ours: float
    published: float
    rounding: float
    with_fewer: float  # our rate with p transfers fewer


def _transfers(rates: Sequence[Rate]) -> list[_Transfers]:
    """Solved for where that is possible: a published rate, groups of p microbatches, transfers that take time."""
    found: list[_Transfers] = []
    for rate in rates:
        row, published = rate.row, rate.published
        if rate.schedule != "interleaved" or not published or published >= 1 or row.m % row.p or not row.transfer_s:
            continue
        work_s = row.m * row.microbatch_s
        compute_s = work_s + (row.p - 1) * row.microbatch_s / rate.stages_per_rank
        found.append(
            _Transfers(
                rate=rate,
                ours=(rate.cost_s - compute_s) / row.transfer_s,
                published=(work_s / (1 - published) - compute_s) / row.transfer_s,
                rounding=0.5e-4 * work_s / (1 - published) ** 2 / row.transfer_s,
                with_fewer=1 - work_s / (rate.cost_s - row.p * row.transfer_s),
            )
        )
    return found


def _notes(rates: Sequence[Rate]) -> list[str]:
    unknown = {f"{rate.row.model}, p = {rate.row.p}" for rate in rates if _interleaved_stages(rate.row) is None}
    return [
        f"interleaved has {_USUAL_STAGES} stages a rank for {name}: the paper does not say how many"
        for name in sorted(unknown)
    ]


def _json(rates: Sequence[Rate], seconds: float) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for rate in rates:
        row: dict[str, Any] = {"model": rate.row.model, "p": rate.row.p, "m": rate.row.m, "schedule": rate.schedule}
        row |= {"ours": rate.ours, "stages_per_rank": rate.stages_per_rank}
        if rate.published is not None:
            row["published"] = rate.published
        rows.append(row)
    transfers = [
        {"model": own.rate.row.model, "p": own.rate.row.p, "m": own.rate.row.m}
        | {"ours": own.ours, "published": own.published, "rounding": own.rounding, "with_fewer": own.with_fewer}
        for own in _transfers(rates)
    ]
    return {
        "rows": rows,
        "interleaved_transfers": transfers,
        "notes": _notes(rates),
        "machine": asdict(this_machine()),
        "seconds": seconds,
    }


def _table(rates: Sequence[Rate], seconds: float) -> list[str]:
    machine = this_machine()
    width = max(len("model"), *(len(rate.row.model) for rate in rates))
    lines = [f"{machine.processor}, {machine.cores} cores; {len(rates)} simulated schedules in {seconds:.1f} s"]
    lines.append(
        f"{'model':{width}} {'p':>3} {'m':>4}  {'schedule':11} {'stages/rank':>11}  {'ours':>7}  published  difference"
    )
    before: Row | None = None
    for rate in rates:
        row = rate.row
        if before not in (None, row):
            lines.append("")
        before = row
        line = f"{row.model:{width}} {row.p:3} {row.m:4}  {rate.schedule:11} {rate.stages_per_rank:11}"
        line += f"  {rate.ours:7.4f}"
        if rate.published is not None:
            line += f"  {rate.published:9.4f}  {round(rate.ours, 4) - rate.published + 0.0:+10.4f}"
        lines.append(line)
    return [*lines, "", *_transfer_lines(rates, width), *_notes(rates)]


def _transfer_lines(rates: Sequence[Rate], width: int) -> list[str]:
    solved = _transfers(rates)
    if not solved:
        return []
    lines = [
        _REASON,
        f"{'model':{width}} {'p':>3} {'m':>4} {'v':>2}  {'transfers: ours':>15}  {'published':>13}  "
        f"{'our rate with p fewer':>21}  published",
    ]
    for own in solved:
        row, count = own.rate.row, f"{own.published:.1f} +- {own.rounding:.1f}"
        lines.append(
            f"{row.model:{width}} {row.p:3} {row.m:4} {own.rate.stages_per_rank:2}  {own.ours:15.1f}  {count:>13}  "
            f"{own.with_fewer:21.4f}  {own.rate.published:9.4f}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
