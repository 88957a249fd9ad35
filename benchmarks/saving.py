"""What saving costs a run: the step during which a checkpoint is copied and written, beside a quiet one.

    python -m benchmarks.saving                        # a state of about 500 MiB in one process

A run saves after every fourth step. The step after a save holds the copy to host memory and, in a thread, the writing,
flushing to the disk and hashing; the fourth step after it holds nothing of a save, or is not counted where the writing
had not ended by then. `step` is the median ratio of the two with its 95% interval, at most 1.5 being aimed at; `next`
is that of the step after, into which the writing may reach; `hashing` is the hashing's share of the seconds that a
checkpoint took to write, at most 0.05.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.statistics import LEAST_ROUNDS, ratio_of
from evenflow.files import load_metrics
from evenflow.spec import this_machine
from evenflow.train import Job, Silent, train

EVERY = 4
MIB = 2**20


class Saves(Silent):
    """Notes how long each save took to write, and its hashing."""

    def __init__(self) -> None:
        self.seconds: dict[int, tuple[float, float]] = {}

    def saved(self, checkpoint: Path, write_s: float, hash_s: float) -> None:
        self.seconds[int(checkpoint.name.partition("-")[2])] = write_s, hash_s


def main() -> None:
    """Run, then print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS, help=f"saves, at least {LEAST_ROUNDS}")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--hidden-size", type=int, default=848)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--global-batch-size", type=int, default=16)
    parser.add_argument("--seq-length", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.rounds < LEAST_ROUNDS:
        parser.error(f"{arguments.rounds} rounds say nothing on a noisy machine; {LEAST_ROUNDS} would be the least")
    result = measure(arguments)
    if arguments.json:
        print(json.dumps(result))
    else:
        _print_table(result)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train, saving after every fourth step, and note what saving took."""
    with tempfile.TemporaryDirectory(prefix="evenflow-") as name:
        folder = Path(name)
        out = folder / "run"
        saves = Saves()
        train(_job(options, folder), saves)
        steps = {own.step: own.step_s for own in load_metrics(out / "metrics.jsonl")}
        shards = (out / "checkpoints" / f"step-{EVERY:08d}").glob("*.safetensors")
        state_bytes = sum(file.stat().st_size for file in shards)
    saved_s = {step: own for step, own in saves.seconds.items() if step + EVERY <= max(steps)}
    # One after a save that was still being written when the last of its steps began is no pair.
    saved = [
        step
        for step, (write_s, _) in saved_s.items()
        if write_s < sum(steps[step + later] for later in range(1, EVERY))
    ]
    quiet = [steps[step + EVERY] for step in saved]
    return {
        "machine": asdict(this_machine()),
        "processes": options.processes,
        "rounds": len(saved),
        "state_bytes": state_bytes,
        "step_s": median(quiet),
        "saving_step_s": median(steps[step + 1] for step in saved),
        "write_s": median(write_s for write_s, _ in saved_s.values()),
        "step": asdict(ratio_of([steps[step + 1] for step in saved], quiet)),
        "next": asdict(ratio_of([steps[step + 2] for step in saved], quiet)),
        "hashing": asdict(ratio_of([own for _, own in saved_s.values()], [own for own, _ in saved_s.values()])),
    }


def _job(options: argparse.Namespace, folder: Path) -> Job:
    config = {
        "model_type": "llama",
        "hidden_size": options.hidden_size,
        "intermediate_size": 3 * options.hidden_size,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "num_hidden_layers": options.blocks,
        "vocab_size": 4096,
        "max_position_embeddings": max(options.seq_length, 128),
        "tie_word_embeddings": False,
    }
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(config))
    (folder / "text.txt").write_text("".join(f"line {n}: {n * n} is the square of {n}\n" for n in range(20000)))
    steps = EVERY * (options.rounds + 1)
    return Job(
        model=str(folder / "model"),
        data=folder / "text.txt",
        out=folder / "run",
        steps=steps,
        global_batch_size=options.global_batch_size,
        micro_batch_size=max(options.global_batch_size // (4 * options.processes), 1),
        seq_length=options.seq_length,
        processes=options.processes,
        check=False,
        save_every=EVERY,
        keep_last=1,
        keep_every=EVERY,
    )


def _print_table(result: dict[str, Any]) -> None:
    machine, hashing = result["machine"], result["hashing"]
    print(f"{machine['processor']}, {machine['cores']} cores; {result['rounds']} saves, medians")
    print(
        f"a state of {result['state_bytes'] / MIB:.0f} MiB in {result['processes']} processes, written in "
        f"{result['write_s']:.2f} s; step {result['step_s']:.2f} s, during a save {result['saving_step_s']:.2f} s"
    )
    for name, what in (("step", "step with the copy and the writing"), ("next", "the step after it")):
        own = result[name]
        print(f"{what:35} over a quiet one {own['median']:.3f} [{own['low']:.3f}, {own['high']:.3f}]")
    low, high = hashing["low"], hashing["high"]
    print(f"hashing, of writing {100 * hashing['median']:.2f}% [{100 * low:.2f}%, {100 * high:.2f}%]")


if __name__ == "__main__":
    main()
