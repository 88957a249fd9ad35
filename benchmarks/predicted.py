"""Predicted against measured on this machine: 12 different jobs, planned from a measured profile and then run.

    python -m benchmarks.predicted                # half an hour
    python -m benchmarks.predicted --jobs 0 6 11  # these

Jobs differ in model, split, schedule, recomputation, microbatches and number of processes (1 to 4). Each is profiled
anew, planned from that and trained for a few steps; nothing is fitted. A shared machine is faster now and slower a
minute later, so each job is profiled, planned and run three times, and the round is shown whose error of the step is
the median of the three, with the errors of all. The step is the median of those after the first two; memory is the
fullest rank's peak above what its process held before the model was built. Errors are relative to what was measured.
On two cores jobs of three and four processes share them, which the plan knows.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from evenflow.files import load_metrics
from evenflow.spec import this_machine
from evenflow.train import Job, Silent, train

_STEPS = 9
_SKIPPED = 2  # the first steps warm up
_SEQ = 128
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Case:
    """One job: a model, and how it is run."""

    family: str
    sizes: dict[str, int]
    processes: int
    global_batch: int
    micro_batch: int
    settings: dict[str, Any]


def llama(hidden: int, blocks: int, vocabulary: int, heads: int = 8) -> tuple[str, dict[str, int]]:
    return "llama", {
        "hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": blocks, "vocab_size": vocabulary,
        "num_attention_heads": heads, "num_key_value_heads": heads // 2, "max_position_embeddings": 512,
    }  # fmt: skip


def gpt(hidden: int, blocks: int, vocabulary: int) -> tuple[str, dict[str, int]]:
    return "gpt2", {
        "n_embd": hidden, "n_layer": blocks, "n_head": 8, "vocab_size": vocabulary, "n_positions": 512,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip


CASES = (
    Case(*llama(512, 6, 16000), 1, 8, 2, {}),
    Case(*llama(512, 6, 16000), 2, 16, 2, {"schedule": "1f1b"}),
    Case(*llama(512, 8, 8000), 2, 16, 4, {"schedule": "gpipe"}),
    Case(*gpt(512, 8, 16000), 2, 16, 2, {"schedule": "zb-h1"}),
    Case(*llama(768, 4, 16000), 2, 8, 1, {"schedule": "interleaved", "stages_per_rank": 2}),
    Case(*llama(640, 6, 12000), 2, 16, 2, {"schedule": "1f1b", "recompute": "full"}),
    Case(*llama(512, 6, 16000), 2, 16, 2, {"dp": 2}),
    Case(*llama(768, 4, 8000), 2, 8, 2, {"tp": 2}),
    Case(*gpt(640, 6, 8000), 3, 12, 1, {"schedule": "1f1b"}),
    Case(*llama(512, 9, 8000), 3, 12, 2, {"schedule": "zb-h2"}),
    Case(*llama(512, 8, 8000), 4, 16, 2, {"schedule": "1f1b"}),
    Case(*llama(512, 6, 16000), 4, 16, 2, {"dp": 2, "schedule": "1f1b"}),
)


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Profile, plan and train one job, some times over; the round whose error of the step is the median."""
    rounds = [_once(case, folder / str(number)) for number in range(_ROUNDS)]
    own = sorted(rounds, key=lambda own: float(own["step_time"]))[_ROUNDS // 2]
    return {**own, "rounds": [one["step_time"] for one in rounds]}


def _once(case: Case, folder: Path) -> dict[str, Any]:
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"model_type": case.family, **case.sizes}))
    job = Job(
        model=str(model), data=Path(sysconfig.get_paths()["stdlib"]) / "email", out=folder / "run", steps=_STEPS,
        global_batch_size=case.global_batch, micro_batch_size=case.micro_batch, seq_length=_SEQ,
        processes=case.processes, from_scratch=True, check=False, measure_again=True, **case.settings,
    )  # fmt: skip
    result = train(job, Silent())
    steps = load_metrics(job.out / "metrics.jsonl")[_SKIPPED:]
    peak = max(max(own.peak_bytes) for own in steps)
    planned = max(rank.peak_bytes for rank in result.plan.ranks)
    predicted, step = result.plan.predicted.step_s, median(own.step_s for own in steps)
    return {
        "family": case.family, "parameters": sum(one.memory.parameter_bytes for one in result.plan.stages) // 4,
        "processes": case.processes, "microbatches": result.plan.microbatches, **case.settings,
        "stages": [len(one.layers) for one in result.plan.stages],
        "predicted_s": predicted, "measured_s": step, "predicted_bytes": planned, "measured_bytes": peak,
        "step_time": predicted / step - 1, "memory": planned / peak - 1,
    }  # fmt: skip


def _summary(rows: Sequence[dict[str, Any]], what: str) -> dict[str, float]:
    errors = [abs(row[what]) for row in rows]
    return {"median": median(errors), "worst": max(errors)}


def main() -> None:
    """Print a line a job and the errors, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", choices=range(len(CASES)), default=range(len(CASES)))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for number in arguments.jobs:
        case = CASES[number]
        with tempfile.TemporaryDirectory(prefix="evenflow-") as name:
            rows.append(run(case, Path(name)))
        if not arguments.json:
            row = rows[-1]
            kind = " ".join(f"{key} {value}" for key, value in case.settings.items())
            print(
                f"{number:2} {case.family} {row['parameters'] / 1e6:.0f} M, {case.processes} processes, {kind}, "
                f"{row['microbatches']} microbatches, stages {row['stages']}: "
                f"step {row['predicted_s']:.3f} s of {row['measured_s']:.3f} s ({row['step_time']:+.1%}"
                f" of {', '.join(f'{own:+.1%}' for own in row['rounds'])}), "
                f"memory {row['predicted_bytes'] / 2**20:.0f} MiB of "
                f"{row['measured_bytes'] / 2**20:.0f} MiB ({row['memory']:+.1%})",
                flush=True,
            )
    errors = {what: _summary(rows, what) for what in ("step_time", "memory")}
    if arguments.json:
        print(json.dumps({"machine": asdict(this_machine()), "jobs": rows, **errors}))
        return
    for what, found in errors.items():
        print(f"{what}: median {found['median']:.1%}, worst {found['worst']:.1%}")


if __name__ == "__main__":
    main()
