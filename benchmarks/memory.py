"""What evenflow holds beside PyTorch's pipeline, and whether it grows with the number of microbatches.

Each figure is of one contestant alone in processes of its own, all with the same allocator settings: the peak of
the process above what it held before the model was built (median of the runs), and the peak of its tensors,
counted at the allocator. AdamW's moments are in place before the step.

    peers' job     the model of `python -m benchmarks.peers`: evenflow with 8 and 128 microbatches, PyTorch's 1F1B
                   with 8 on evenflow's split
    memory job     linear layers of 2048 x 2048, 4 MiB cross the cut (`benchmarks/linear_job.py`): both with 128
                   microbatches, evenflow with 8 too

`memory_growth` is our process peak with 128 microbatches over that with 8, `memory_vs_torch` our process peak over
PyTorch's on the peers' job, `memory_job_vs_torch` on the memory job: each of the rank and job where it is largest.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.linear_job import RANKS, LinearJob
from benchmarks.peer_job import JOB, TINY, PeersJob
from benchmarks.peer_start import StartedJob, start_job
from evenflow.errors import EvenflowError
from evenflow.launch import cores_of_ranks, shared_server
from evenflow.spec import Batch
from evenflow.units import format_bytes

FEW, MANY = 8, 128
LINEAR = LinearJob()
_TINY_LINEAR = LinearJob(rows=8, features=64)

Peaks = list[float]  # bytes of each rank
Measure = Callable[[str, int, bool], Peaks]  # contestant, microbatches, tensors (else the process) -> one run's peaks


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure: the two jobs, and how often for each median."""

    job: PeersJob = JOB
    linear: LinearJob = LINEAR
    runs: int = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print a table or one JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each process peak")
    parser.add_argument("--tiny", action="store_true", help="small models: to try the command")
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args(arguments)
    if parsed.runs < 1:
        parser.error("runs start at 1")
    settings = Settings(TINY, _TINY_LINEAR, parsed.runs) if parsed.tiny else Settings(runs=parsed.runs)
    try:
        figures = memory_figures(settings)
    except EvenflowError as error:
        print(f"benchmarks.memory: {error}", file=sys.stderr)
        return error.exit_code
    if parsed.json:
        print(json.dumps(figures))
    else:
        print_memory(figures)
    return 0


def memory_figures(settings: Settings) -> dict[str, Any]:
    """All of them.

    Raises:
        EvenflowError: a rank failed.
    """
    with tempfile.TemporaryDirectory(prefix="evenflow-") as name:
        folder = Path(name)
        peers = _peers_job(settings, folder)
        linear = _linear_job(settings, folder)
    return {
        "memory_growth": max(_worst(job["evenflow"][MANY], job["evenflow"][FEW]) for job in (peers, linear)),
        "memory_vs_torch": _worst(peers["evenflow"][FEW], peers["torch"][FEW]),
        "memory_job_vs_torch": _worst(linear["evenflow"][MANY], linear["torch"][MANY]),
        "memory": {"runs": settings.runs, "peers_job": peers, "memory_job": linear},
    }


def _worst(ours: dict[str, Peaks], theirs: dict[str, Peaks]) -> float:
    """The largest ratio of process peaks over the ranks."""
    return max(own / other for own, other in zip(ours["process"], theirs["process"], strict=True))


def _peers_job(settings: Settings, folder: Path) -> dict[str, Any]:
    few = start_job(settings.job, RANKS, folder)
    size = settings.job.batch.micro_batch_size
    jobs = {count: few.replan(Batch(count * size, size, settings.job.batch.seq_length)) for count in (FEW, MANY)}

    def measure(contestant: str, microbatches: int, tensors: bool) -> Peaks:
        name = "torch_same_split" if contestant == "torch" else contestant
        own = {"contestant": name, "tensors": tensors, "steps": 1}
        return [
            result["peak_bytes"] for result in jobs[microbatches].run(name, "benchmarks.memory_ranks:run_peer", own)
        ]

    predicted = {count: _predicted(job) for count, job in jobs.items()}
    return {**_all(measure, settings.runs, (("torch", FEW),)), "predicted": predicted}


def _predicted(job: StartedJob) -> Peaks:
    """Of tensors alone, which is what they are held against: without what a process holds beside them."""
    return [float(rank.peak_bytes - job.plan.process_bytes) for rank in job.plan.ranks]


def _linear_job(settings: Settings, folder: Path) -> dict[str, Any]:
    def measure(contestant: str, microbatches: int, tensors: bool) -> Peaks:
        with tempfile.TemporaryDirectory(dir=folder) as own_folder:
            payload = {
                "contestant": contestant,
                "job": asdict(replace(settings.linear, microbatches=microbatches)),
                "tensors": tensors,
                "steps": 1,
                "rendezvous": f"{own_folder}/rendezvous",
            }
            cores = cores_of_ranks(RANKS, 1)
            group = shared_server().start(contestant, "benchmarks.memory_ranks:run_linear", RANKS, payload, cores)
            results = dict(item for item in group.messages() if item is not None)
        return [results[rank]["peak_bytes"] for rank in range(RANKS)]

    return _all(measure, settings.runs, (("torch", MANY),))


def _all(measure: Measure, runs: int, others: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Process and tensor peaks of evenflow with few and many microbatches, and of others; runs take turns."""
    cases = [("evenflow", FEW), ("evenflow", MANY), *others]
    found: dict[tuple[str, int], list[Peaks]] = {case: [] for case in cases}
    for _ in range(runs):
        for case in cases:
            found[case].append(measure(*case, False))
    result: dict[str, Any] = {}
    for (contestant, microbatches), peaks in found.items():
        result.setdefault(contestant, {})[microbatches] = {
            "process": [median(own) for own in zip(*peaks, strict=True)],
            "tensors": measure(contestant, microbatches, True),
        }
    return result


def print_memory(figures: dict[str, Any]) -> None:
    """The table."""
    memory = figures["memory"]
    print(f"peak memory of each rank, medians of {memory['runs']}")
    print(f"{'job':12} {'':10} {'microbatches':>12}  {'process':>24}  {'tensors':>24}  {'predicted':>24}")
    for name, job in (("peers' job", memory["peers_job"]), ("memory job", memory["memory_job"])):
        for contestant in ("evenflow", "torch"):
            for count, peaks in job[contestant].items():
                predicted = job.get("predicted", {}).get(count, []) if contestant == "evenflow" else []
                cells = [", ".join(map(format_bytes, map(int, own))) for own in (*peaks.values(), predicted)]
                print(f"{name:12} {contestant:10} {count:12}  " + "  ".join(f"{cell:>24}" for cell in cells))
    print(f"our process peak, {MANY} microbatches over {FEW}: {figures['memory_growth']:.3f}")
    print(f"our process peak over PyTorch's, peers' job: {figures['memory_vs_torch']:.3f}")
    print(f"our process peak over PyTorch's, memory job: {figures['memory_job_vs_torch']:.3f}")


if __name__ == "__main__":
    sys.exit(main())
