"""evenflow against PyTorch's and DeepSpeed's pipelines on the same work, in interleaved rounds of one run.

Llama with d 384, ffn 1024, 6 heads, 8 blocks and a vocabulary of 32,000; 8 microbatches of 2 x 256 tokens;
2 processes of one thread. The contestants share processes, cores, allocator, optimizer settings, clipping and data:

    evenflow              its own split and executor
    one_process           the whole model in one process of one thread: no pipeline
    torch_equal_layers    torch.distributed.pipelining 1F1B, equal layer counts
    torch_same_split      the same with evenflow's split and schedule
    deepspeed_uniform     DeepSpeed's PipelineModule, as many layers on every stage
    deepspeed_parameters  the same, split by parameter counts

`speed` is the median within-round ratio of their step to ours, with a 95% interval (`deepspeed` is the faster of the
two); `over_bound` is our step over `schedule_bound`, by layers timed before and after; `memory_growth` and
`memory_vs_torch` are those of `python -m benchmarks.memory`. All must have had the same losses, else there are no
figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.contestants import CONTESTANTS, EVENFLOW, OPTIONAL, missing
from benchmarks.memory import Settings as MemorySettings
from benchmarks.memory import memory_figures, print_memory
from benchmarks.peer_job import JOB, TINY, PeersJob
from benchmarks.peer_start import start_job
from benchmarks.statistics import LEAST_ROUNDS, Ratio, ratio_of
from evenflow.errors import EvenflowError, FaultError
from evenflow.search import plan_timeline
from evenflow.spec import this_machine

# Of losses, relative: sums are made in other orders, and AdamW's first steps make much of small gradients.
TOLERANCE = 1e-4
ROUNDS = LEAST_ROUNDS + 6


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run.

    Attributes:
        job: the model and its batch.
        rounds: timed rounds.
        steps: steps of each contestant in a round.
        processes: ranks of the pipelines.
        schedule: evenflow's, and that of `torch_same_split`.
        contestants: who takes part.
        profile: a folder for each contestant's and rank's cProfile; None without.
    """

    job: PeersJob = JOB
    rounds: int = ROUNDS
    steps: int = 1
    processes: int = 2
    schedule: str = "1f1b"
    contestants: tuple[str, ...] = tuple(CONTESTANTS)
    profile: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, then print a table or one JSON object; returns the exit code."""
    parsed = _parse(arguments)
    settings = Settings(
        job=TINY if parsed.tiny else JOB,
        rounds=parsed.rounds,
        steps=parsed.steps,
        processes=parsed.processes,
        schedule=parsed.schedule,
        contestants=tuple(parsed.only or CONTESTANTS),
        profile=parsed.profile,
    )
    if settings.rounds < LEAST_ROUNDS:
        print(f"{settings.rounds} rounds say nothing on a noisy machine: at least {LEAST_ROUNDS}", file=sys.stderr)
    try:
        result = compare(settings)
        if parsed.memory_runs and not parsed.only and not parsed.tiny:
            result |= memory_figures(MemorySettings(runs=parsed.memory_runs))
    except EvenflowError as error:
        print(f"benchmarks.peers: {error}", file=sys.stderr)
        return error.exit_code
    if parsed.json:
        print(json.dumps(result))
    else:
        _print_table(result)
        if "memory" in result:
            print_memory(result)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"at least {LEAST_ROUNDS} say something")
    parser.add_argument("--steps", type=int, default=1, help="of each contestant in a round")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--schedule", default="1f1b", help="evenflow's, and that of torch_same_split")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), help="who takes part; no memory figures")
    parser.add_argument("--tiny", action="store_true", help="a model of 0.4 M parameters: to try the command")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="write each contestant's cProfile of each rank")
    parser.add_argument("--memory-runs", type=int, default=5, metavar="N", help="of each memory figure; 0: none")
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args(arguments)
    if min(parsed.rounds, parsed.steps) < 1 or parsed.memory_runs < 0:
        parser.error("rounds and steps start at 1, memory runs at 0")
    if not 2 <= parsed.processes <= JOB.config["num_hidden_layers"]:
        parser.error(f"--processes {parsed.processes} is no pipeline of this model; 2 to 8 would do")
    return parsed


def compare(settings: Settings) -> dict[str, Any]:
    """Profile, plan, and run all contestants in turn.

    Raises:
        FaultError: a rank failed, or a contestant's losses were not evenflow's.
    """
    left_out = {name: reason for name in settings.contestants if (reason := missing(name)) is not None}
    names = [name for name in settings.contestants if name not in left_out]
    if not names:
        raise FaultError(f"nobody is left to run: {'; '.join(left_out.values())}")
    with tempfile.TemporaryDirectory(prefix="evenflow-") as folder:
        job = start_job(settings.job, settings.processes, Path(folder), settings.schedule)
        own = {
            "contestants": names,
            "rounds": settings.rounds,
            "steps": settings.steps,
            "profile": None if settings.profile is None else str(settings.profile.absolute()),
        }
        results = job.run("peers", "benchmarks.peer_ranks:run", own)
        both = (job.plan, job.measured_again().plan)  # a shared machine is faster now and slower a minute later
    left_out |= results[0]["left_out"]
    names = [name for name in names if name not in left_out]
    seconds = {
        name: [max(values) for values in zip(*(result["seconds"][name] for result in results), strict=True)]
        for name in names
    }
    plan = job.plan
    losses = {name: _known(result["losses"][name] for result in results) for name in names}
    differences = loss_differences(losses)
    speed = _speed(seconds)
    bound = fmean(plan_timeline(own, with_transfers=False).step_s for own in both)
    return {
        "machine": asdict(this_machine()),
        "rounds": settings.rounds,
        "processes": settings.processes,
        "schedule": plan.schedule,
        "splits": {EVENFLOW: plan.stage_layers, **results[0]["splits"]},
        "left_out": left_out,
        "step_s": {name: median(values) for name, values in seconds.items()},
        "cpu_s": {name: [median(result["cpu"][name]) for result in results] for name in names},
        "predicted_step_s": fmean(own.predicted.step_s for own in both),
        "schedule_bound_s": bound,
        "losses": {name: values[-1] for name, values in losses.items()},
        "loss_difference": differences,
        "speed": {name: None if ratio is None else asdict(ratio) for name, ratio in speed.items()},
        "over_bound": median(seconds[EVENFLOW]) / bound if EVENFLOW in names else None,
        "memory_growth": None,
        "memory_vs_torch": None,
    }


def _known(of_ranks: Iterable[Sequence[float | None]]) -> list[float]:
    """Each step's loss, from the first rank that knows it."""
    steps = zip(*of_ranks, strict=True)
    return [next(loss for loss in step if loss is not None) for step in steps]


def loss_differences(losses: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The largest relative difference of each contestant's losses from those of the first one, over all steps.

    Raises:
        FaultError: a difference above `TOLERANCE`: that contestant did other work.
    """
    first, *_ = losses
    differences = {
        name: max(abs(own - other) / abs(other) for own, other in zip(values, losses[first], strict=True))
        for name, values in losses.items()
    }
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise FaultError(
                f"{name} does other work than {first}: their losses differ by {difference:.1e} (relative; "
                f"{TOLERANCE:.0e} is allowed), so their step times say nothing"
            )
    return differences


def _speed(seconds: Mapping[str, Sequence[float]]) -> dict[str, Ratio | None]:
    """Each contestant's step over ours; `deepspeed` is the one of its two that has the shorter median step."""
    if EVENFLOW not in seconds:
        return dict.fromkeys((*seconds, "deepspeed"))
    speed: dict[str, Ratio | None] = {
        name: ratio_of(values, seconds[EVENFLOW]) for name, values in seconds.items() if name != EVENFLOW
    }
    best = min((name for name in OPTIONAL if name in seconds), key=lambda name: median(seconds[name]), default=None)
    return {**speed, "deepspeed": None if best is None else speed[best]}


def _print_table(result: dict[str, Any]) -> None:
    machine = result["machine"]
    print(f"{machine['processor']}, {machine['cores']} cores; {result['rounds']} interleaved rounds, medians")
    print(f"{result['processes']} processes, {result['schedule']}, predicted step {result['predicted_step_s']:.3f} s")
    for name, split in result["splits"].items():
        print(f"layers of each stage, {name}: {', '.join(str(len(layers)) for layers in split)}")
    print(f"{'':20} {'step s':>8}  {'evenflow is faster by':>24}  {'last loss':>10}  {'differs by':>10}  cpu s by rank")
    for name, step_s in result["step_s"].items():
        ratio = result["speed"].get(name)
        text = f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]" if ratio else ""
        cpu = ", ".join(f"{used:.3f}" for used in result["cpu_s"][name])
        loss, difference = result["losses"][name], result["loss_difference"][name]
        print(f"{name:20} {step_s:8.3f}  {text:>24}  {loss:10.6f}  {difference:10.1e}  {cpu}")
    for name, reason in result["left_out"].items():
        print(f"{name:20} {reason}")
    if result["over_bound"] is not None:
        print(f"our step over schedule_bound: {result['over_bound']:.3f}")


if __name__ == "__main__":
    sys.exit(main())
