"""Rehearsed against real: ranks of four real runs, each rehearsed alone, and the steps that follow from them.

    python -m benchmarks.rehearsed            # about six minutes
    python -m benchmarks.rehearsed --only 1   # one of the runs: the second
    python -m benchmarks.rehearsed --alone    # a rank's neighbours' cores idle while it is rehearsed

A run's ranks have busy seconds and a peak of memory in RUN/timeline.json and RUN/metrics.jsonl; each job is
run before its ranks are rehearsed and again after, and its figures are the means of both, so that a machine that grows
slower favours nobody.
Where a run has more ranks than cores, a rank's busy seconds in it are those of a shared core; what is held against
them are the busy seconds of the step that is simulated from the rehearsal, on as many cores. As many copies of a rank
take turns on them then as the run has ranks, so that caches are as full of others' data as there. Errors are relative
to what was measured in the run.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.predicted import Case, gpt, llama
from evenflow.files import load_metrics, load_plan, load_timelines
from evenflow.models import find_model
from evenflow.rehearse import check_model, rehearse_rank, rehearsed_plan
from evenflow.search import plan_timeline
from evenflow.spec import this_machine
from evenflow.train import Job, Silent, train

_STEPS = 11
_SKIPPED = 2
_SEQ = 128

CASES = (
    Case(*llama(512, 6, 16000), 2, 16, 2, {"schedule": "1f1b"}),
    Case(*gpt(512, 8, 16000), 2, 16, 2, {"schedule": "zb-h1"}),
    Case(*llama(512, 9, 8000), 3, 12, 2, {"schedule": "1f1b"}),
    Case(*llama(512, 8, 8000), 4, 16, 2, {"schedule": "1f1b"}),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One rank of one run."""

    run: int
    rank: int
    compute_s: float
    measured_s: float
    peak_bytes: int
    measured_bytes: int

    @property
    def time_error(self) -> float:
        """Of its compute time."""
        return self.compute_s / self.measured_s - 1

    @property
    def memory_error(self) -> float:
        """Of its peak."""
        return self.peak_bytes / self.measured_bytes - 1


def run(number: int, case: Case, folder: Path, alone: bool) -> tuple[list[Row], dict[str, float]]:
    """Train one job, rehearse its ranks, train it again; each rank's figures, and the step's."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"model_type": case.family, **case.sizes}))
    first = _train(case, model, folder / "first", None)
    plan, source = load_plan(folder / "first" / "plan.json"), find_model(str(model))
    described = check_model(plan, source)
    found = {
        rank: rehearse_rank(plan, source, described, rank, processes=1 if alone else None)
        for rank in range(len(plan.ranks))
    }
    second = _train(case, model, folder / "second", folder / "first" / "plan.json")
    whole = plan_timeline(rehearsed_plan(plan, described, found))
    shared = plan.at_once < len(plan.ranks)
    rows = [
        Row(
            run=number,
            rank=rank,
            compute_s=whole.ranks[rank].busy_s if shared else own.compute_s,
            measured_s=fmean((first.busy_s[rank], second.busy_s[rank])),
            peak_bytes=own.peak_bytes,
            measured_bytes=int(fmean((first.peak_bytes[rank], second.peak_bytes[rank]))),
        )
        for rank, own in found.items()
    ]
    step_s = fmean((first.step_s, second.step_s))
    return rows, {"rehearsed_s": whole.step_s, "measured_s": step_s, "error": whole.step_s / step_s - 1}


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run was: each rank's busy seconds in its typical step, its peak, and the median step."""

    busy_s: tuple[float, ...]
    peak_bytes: tuple[int, ...]
    step_s: float


def _train(case: Case, model: Path, out: Path, plan: Path | None) -> _Run:
    followed: dict[str, Any] = case.settings if plan is None else {"plan": plan}
    job = Job(
        model=str(model), data=Path(sysconfig.get_paths()["stdlib"]) / "email", out=out, steps=_STEPS,
        global_batch_size=case.global_batch, micro_batch_size=case.micro_batch, seq_length=_SEQ,
        processes=case.processes, from_scratch=True, check=False, **followed,
    )  # fmt: skip
    train(job, Silent())
    measured = load_timelines(out / "timeline.json").measured
    assert measured is not None, "the run was measured"
    steps = load_metrics(out / "metrics.jsonl")[_SKIPPED:]
    return _Run(
        busy_s=tuple(own.busy_s for own in measured.ranks),
        peak_bytes=steps[-1].peak_bytes,
        step_s=median(own.step_s for own in steps),
    )


def main() -> None:
    """Print a line a rank and the errors, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, metavar="N", help="run N alone, from 0")
    parser.add_argument("--alone", action="store_true", help="nothing works beside a rehearsed rank")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: list[Row] = []
    steps: list[dict[str, float]] = []
    for number, case in enumerate(CASES):
        if arguments.only not in (None, number):
            continue
        with tempfile.TemporaryDirectory(prefix="evenflow-") as name:
            own, step = run(number, case, Path(name), arguments.alone)
        rows += own
        steps.append(step)
        if not arguments.json:
            _print(case, own, step)
    errors = {
        "compute": _summary([row.time_error for row in rows]),
        "memory": _summary([row.memory_error for row in rows]),
        "step": _summary([step["error"] for step in steps]),
    }
    if arguments.json:
        machine = asdict(this_machine())
        print(json.dumps({"machine": machine, "ranks": [asdict(row) for row in rows], "steps": steps, **errors}))
        return
    for what, found in errors.items():
        print(f"{what}: median {found['median']:.1%}, worst {found['worst']:.1%}")


def _print(case: Case, rows: Sequence[Row], step: dict[str, float]) -> None:
    kind = " ".join(f"{key} {value}" for key, value in case.settings.items())
    print(f"{case.family}, {case.processes} processes, {kind}: step {step['rehearsed_s']:.3f} s of "
          f"{step['measured_s']:.3f} s ({step['error']:+.1%})")  # fmt: skip
    for row in rows:
        print(
            f"  rank {row.rank}: compute {row.compute_s:.3f} s of {row.measured_s:.3f} s ({row.time_error:+.1%}), "
            f"memory {row.peak_bytes / 2**20:.0f} MiB of {row.measured_bytes / 2**20:.0f} MiB "
            f"({row.memory_error:+.1%})",
            flush=True,
        )


def _summary(errors: Sequence[float]) -> dict[str, float]:
    return {"median": median(map(abs, errors)), "worst": max(map(abs, errors))}


if __name__ == "__main__":
    main()
