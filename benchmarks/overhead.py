"""What the executor's loop and its recorder cost beside the work itself: two ranks, microbatches of some milliseconds.

    python -m benchmarks.overhead                      # 1F1B, 32 microbatches of 5 ms on each of 2 ranks
    python -m benchmarks.overhead --schedule zb-h1

A rank's step is compute (F, B, I, W, NORM, STEP), waiting (for a message, or in the sum of the norms) and what remains:
overhead. Of that, posting is inside actions: the time of the transport's `send` and `receive`, where gloo copies a
message into a socket. What is between actions is the executor's loop, with its heartbeat's notes, and what its recorder
marks: moments, and in one step of eight, as in training, memory after each action that computes (all steps look here,
and an eighth is counted). The recorder's report to the command follows the last action.

`between_actions` is that time over the step, and at most 0.01 is aimed at; `loop` and `marks` are its parts, `posting`
and the report the rest of `overhead`. `recorder` is marks and report, for which 0.01 is aimed at too. Each is of the
rank where it is larger, the median of rounds with its 95% interval.
`recorder_step` is a step that records and reports over one that does not, less one; in every round both run, in turn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmarks.statistics import LEAST_ROUNDS, Ratio, ratio_of
from evenflow.launch import cores_of_ranks, shared_server
from evenflow.program import SCHEDULES
from evenflow.spec import this_machine

RANKS = 2
PARTS = ("wall", "compute", "waiting", "overhead", "posting", "loop", "marks", "report")
Steps = list[dict[str, float]]  # one for each round: seconds by what they went to


def main() -> None:
    """Run, then print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS + 6, help=f"at least {LEAST_ROUNDS}")
    parser.add_argument("--microbatches", type=int, default=32)
    parser.add_argument("--microbatch-ms", type=float, default=5.0, help="forward and backward of one on one rank")
    parser.add_argument("--schedule", choices=sorted(SCHEDULES), default="1f1b")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.rounds < LEAST_ROUNDS:
        parser.error(f"{arguments.rounds} rounds say nothing on a noisy machine; {LEAST_ROUNDS} would be the least")
    if arguments.microbatches < 1 or arguments.microbatch_ms <= 0:
        parser.error("there is nothing to run; --microbatches 32 --microbatch-ms 5 would do")
    result = measure(arguments.schedule, arguments.microbatches, arguments.microbatch_ms / 1e3, arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
    else:
        _print_table(result)


def measure(schedule: str, microbatches: int, microbatch_s: float, rounds: int) -> dict[str, Any]:
    """Run two ranks for some rounds and take their steps apart."""
    with tempfile.TemporaryDirectory(prefix="evenflow-") as folder:
        group = shared_server().start(
            "overhead",
            "benchmarks.overhead_ranks:run",
            RANKS,
            {
                "schedule": schedule,
                "microbatches": microbatches,
                "microbatch_s": microbatch_s,
                "rounds": rounds,
                "rendezvous": f"{folder}/rendezvous",
            },
            cores_of_ranks(RANKS, 1),
        )
        told = [item for item in group.messages() if item is not None and item[1]["kind"] == "result"]
        results = [message for _, message in sorted(told, key=lambda item: item[0])]
    recorded: list[Steps] = [own["recorded"] for own in results]
    rounds_of = list(zip(*recorded, strict=True))
    step = [max(own["wall"] for own in pair) for pair in rounds_of]
    bare = [max(pair) for pair in zip(*(own["unrecorded"] for own in results), strict=True)]

    def summed(part: str) -> list[float]:
        return [sum(own[part] for own in pair) for pair in rounds_of]

    def worst(*parts: str) -> dict[str, float]:
        """These parts of the step together, on the rank that has more of them."""
        return asdict(ratio_of([max(sum(own[part] for part in parts) for own in pair) for pair in rounds_of], step))

    more = ratio_of(step, bare)
    return {
        "machine": asdict(this_machine()),
        "schedule": schedule,
        "rounds": rounds,
        "microbatches": microbatches,
        "blocks": results[0]["blocks"],
        "microbatch_s": median(summed("compute")) / RANKS / microbatches,
        "step_s": median(step),
        "actions": [own["actions"] for own in results],
        "parts_s": {part: median(summed(part)) / RANKS for part in PARTS},
        "overhead": worst("overhead"),
        "posting": worst("posting"),
        "between_actions": worst("loop", "marks"),
        "loop": worst("loop"),
        "marks": worst("marks"),
        "recorder": worst("marks", "report"),
        "recorder_step": asdict(Ratio(more.median - 1, more.low - 1, more.high - 1)),
    }


def _print_table(result: dict[str, Any]) -> None:
    machine, parts = result["machine"], result["parts_s"]
    print(f"{machine['processor']}, {machine['cores']} cores; {result['rounds']} interleaved rounds, medians")
    print(
        f"{result['schedule']}, {result['microbatches']} microbatches of {1e3 * result['microbatch_s']:.2f} ms on each "
        f"of {RANKS} ranks; step {1e3 * result['step_s']:.1f} ms"
    )
    actions = sum(result["actions"]) / RANKS
    print("a rank's step: " + ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in parts.items()))
    posting_us, loop_us = (1e6 * parts[name] / actions for name in ("posting", "loop"))
    print(f"an action: {posting_us:.1f} us posting, {loop_us:.1f} us loop")
    for name, what in (
        ("overhead", "overhead over the step, worse rank"),
        ("posting", "  inside actions: the transport"),
        ("between_actions", "  between actions"),
        ("loop", "    the executor's loop"),
        ("marks", "    its recorder's marks"),
        ("recorder", "  the recorder, its report included"),
        ("recorder_step", "a step with the recorder, less one"),
    ):
        own = result[name]
        print(f"{what:35} {100 * own['median']:6.2f}%  [{100 * own['low']:.2f}%, {100 * own['high']:.2f}%]")


if __name__ == "__main__":
    main()
