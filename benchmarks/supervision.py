"""What heartbeats, notes and the watch cost a step: two ranks, microbatches of some milliseconds.

    python -m benchmarks.supervision

Four beats and some hundred notes a second are far below what the step of a shared machine varies by, so each part is
made larger and the cost divided by as much: in every round, steps with a heartbeat each `--beat-ms` take turns with
steps without, by the processor's time of all threads; notes are timed alone, so many as a step has; and so is the
watch's look at all ranks, of which there are five a second. `beats`, `notes` and `watch` are shares of the supervised
step; `overhead` is their sum, with the 95% interval of the beats, which alone are measured against noise. At most
0.005 is aimed at.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmarks.statistics import LEAST_ROUNDS, ratio_of
from evenflow.launch import cores_of_ranks, shared_server
from evenflow.launch.heartbeat import BEAT_S
from evenflow.spec import this_machine

RANKS = 2
_LOOKS_A_SECOND = 5.0
_LOOKS = 2000


def main() -> None:
    """Run, then print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS + 6, help=f"at least {LEAST_ROUNDS}")
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--microbatch-ms", type=float, default=5.0, help="forward and backward of one on one rank")
    parser.add_argument("--beat-ms", type=float, default=1.0, help="between the beats of the steps that have them")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.rounds < LEAST_ROUNDS:
        parser.error(f"{arguments.rounds} rounds say nothing on a noisy machine; {LEAST_ROUNDS} would be the least")
    result = measure(arguments.microbatches, arguments.microbatch_ms / 1e3, arguments.beat_ms / 1e3, arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
        return
    print(
        f"{result['machine']['processor']}, {result['rounds']} interleaved rounds; step {1e3 * result['step_s']:.1f} ms"
    )
    for name in ("beats", "notes", "watch", "overhead"):
        own = result[name]
        print(f"{name:10} {100 * own['median']:8.4f}%  [{100 * own['low']:.4f}%, {100 * own['high']:.4f}%]")


def measure(microbatches: int, microbatch_s: float, beat_s: float, rounds: int) -> dict[str, Any]:
    """Time both kinds of step on two ranks, the notes, and the watch."""
    with tempfile.TemporaryDirectory(prefix="evenflow-") as folder:
        payload = {
            "microbatches": microbatches,
            "microbatch_s": microbatch_s,
            "beat_s": beat_s,
            "rounds": rounds,
            "rendezvous": f"{folder}/rendezvous",
        }
        target = "benchmarks.supervision_ranks:run"
        group = shared_server().start("supervision", target, RANKS, payload, cores_of_ranks(RANKS, 1))
        look_s: list[float] = []
        results: list[dict[str, Any]] = []
        for item in group.messages():
            if item is not None:
                results.append(item[1])
            elif len(look_s) < _LOOKS:
                begin = time.perf_counter()
                group.watch.look()
                look_s.append(time.perf_counter() - begin)
    beating = [max(pair) for pair in zip(*(own["beating"] for own in results), strict=True)]
    quiet = [max(pair) for pair in zip(*(own["quiet"] for own in results), strict=True)]
    more, step_s = ratio_of(beating, quiet), median(quiet)
    beats = {name: (getattr(more, name) - 1) * beat_s / BEAT_S for name in ("median", "low", "high")}
    notes = max(own["notes_s"] for own in results) / step_s
    watch = median(look_s) * _LOOKS_A_SECOND  # as if it took a rank's core all that time
    return {
        "machine": asdict(this_machine()),
        "rounds": rounds,
        "step_s": step_s,
        "beats": beats,
        "notes": dict.fromkeys(beats, notes),
        "watch": dict.fromkeys(beats, watch),
        "overhead": {name: own + notes + watch for name, own in beats.items()},
    }


if __name__ == "__main__":
    main()
