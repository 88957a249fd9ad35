"""What programs and schedules cost to make, and what `auto` gains: seconds here, beside the bounds they are to keep.

* 1F1B on 64 ranks: the order generated, lowered, verified and simulated, for four numbers of microbatches, so that
  the growth with the number of actions can be seen. "Time alone" is `step_seconds`, on the same code path that every
  program takes; "all" is `simulate` with memory and idle by cause. A program's graph is made once, when it is
  verified, and read by every simulation after that.
* `auto` for 16 ranks x 128 microbatches.
* `auto` against the best named schedule under the same cap on random uneven pipelines, every fifth of which also on
  half as many processors as ranks; it takes minutes, so it is left out unless `--auto N` asks for N of them. The
  command fails where `auto` is slower in any.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from statistics import median
from typing import Any

from benchmarks.uneven import uneven_case
from evenflow.cli import OneLineParser
from evenflow.cost import LinkCost, RankCost, StageCost, StageMemory
from evenflow.errors import EvenflowError
from evenflow.program import compute_order, lower, verify
from evenflow.search import make_auto
from evenflow.simulate import Hardware, simulate, step_seconds
from evenflow.spec import this_machine
from evenflow.timeline import idle_by_cause

RANKS = 64
MICROBATCHES = (64, 128, 256, 512)
AUTO = (16, 128)
_ROUNDS = 7
_CROWDED = 5  # of so many pipelines one also has fewer processors than ranks
_AT_BOUND = 1 + 1e-6

# Seconds that the largest size is to keep under.
BOUNDS = {"build_s": 1.5, "time_alone_s": 0.060, "all_s": 0.5, "auto_s": 2.0}


@dataclass(frozen=True, slots=True)
class Size:
    """One 1F1B program: its actions, and medians of the seconds that each part took."""

    microbatches: int
    actions: int
    build_s: float
    time_alone_s: float
    all_s: float


@dataclass(frozen=True, slots=True)
class Gain:
    """auto against the best named schedule on pipelines of one unevenness: best named step / auto's step - 1.

    `over_drawn` is the median against those schedules alone that are drawn once for all costs; ZB-1p, ZB-2p and ZB-V
    are made for the costs, as auto is. `optimal` counts the cases in which the best named schedule cannot be beaten,
    because it is at the bound of any order of its stages, and `auto_optimal` those in which auto is there;
    `open_median` is the median of the cases that are not `optimal`. `possible` is the median of best named step /
    bound - 1: no schedule gains more in the median.
    """

    spread: float
    is_crowded: bool
    cases: int
    slower: int
    optimal: int
    auto_optimal: int
    possible: float
    least: float
    median: float
    open_median: float
    most: float
    over_drawn: float


def time_size(microbatches: int) -> Size:
    """Make and simulate 1F1B on 64 ranks."""
    builds: list[float] = []
    program = None
    for _ in range(_ROUNDS):
        program = None
        gc.collect()
        began = time.perf_counter()
        order = compute_order("1f1b", RANKS, microbatches)
        program = lower(order, tuple(range(RANKS)), microbatches)
        verify(program)
        builds.append(time.perf_counter() - began)
    assert program is not None
    made, hardware = program, _hardware(Random(1), RANKS)
    alone = _seconds(lambda: step_seconds(made, hardware))
    whole = _seconds(lambda: idle_by_cause(simulate(made, hardware)))
    return Size(microbatches, len(made.table.kind), median(builds), alone, whole)


def time_auto() -> tuple[float, float]:
    """Seconds that `auto` takes, and its gap to the bound of any order of its stages."""
    ranks, microbatches = AUTO
    seconds: list[float] = []
    gap = 0.0
    for number in range(3):
        uneven = _hardware(Random(10 + number), ranks)  # another one each time: nothing is remembered
        began = time.perf_counter()
        found = make_auto(tuple(range(ranks)), microbatches, uneven, [3_000.0] * ranks)
        seconds.append(time.perf_counter() - began)
        gap = max(gap, found.gap)
    return median(seconds), gap


def compare_auto(cases: int, tick: Callable[[int], None] = lambda _: None) -> list[Gain]:
    """Hold `auto` against the best named schedule on the random pipelines of seeds 0, 1, ..."""
    steps: dict[tuple[bool, float], list[_Steps]] = {}
    for seed in range(cases):
        usual = uneven_case(seed)
        for case in (usual, usual.crowded()) if seed % _CROWDED == 0 else (usual,):
            found = make_auto(case.stage_rank, case.microbatches, case.hardware, case.caps)
            own = _Steps(found.step_s, found.bound_s, case.best_named()[0], case.best_named(drawn=True)[0])
            steps.setdefault((case is not usual, case.spread), []).append(own)
        tick(seed + 1)
    return [_gain(spread, is_crowded, own) for (is_crowded, spread), own in sorted(steps.items())]


@dataclass(frozen=True, slots=True)
class _Steps:
    """Seconds of one pipeline's step: auto's, the bound, the best named schedule's, the best drawn one's."""

    auto: float
    bound: float
    named: float
    drawn: float


def _gain(spread: float, is_crowded: bool, cases: Sequence[_Steps]) -> Gain:
    named = [own.named / own.auto - 1 for own in cases]
    optimal = [own.named <= own.bound * _AT_BOUND for own in cases]
    return Gain(
        spread=spread,
        is_crowded=is_crowded,
        cases=len(cases),
        slower=sum(own.auto > own.named for own in cases),
        optimal=sum(optimal),
        auto_optimal=sum(own.auto <= own.bound * _AT_BOUND for own in cases),
        possible=median(own.named / own.bound - 1 for own in cases),
        least=min(named),
        median=median(named),
        open_median=median([one for one, proven in zip(named, optimal, strict=True) if not proven] or [0.0]),
        most=max(named),
        over_drawn=median(own.drawn / own.auto - 1 for own in cases),
    )


def _hardware(random: Random, ranks: int) -> Hardware:
    stages: list[StageCost] = []
    for _ in range(ranks):
        forward, half, weight = random.uniform(0.9, 1.3), random.uniform(0.9, 1.3), random.uniform(0.5, 1.0)
        stages.append(StageCost(forward, half + weight, half, weight))
    memory = [
        StageMemory(0, 10, 100, 50, 10 if stage else 0, 10 if stage < ranks - 1 else 0, 5, 5) for stage in range(ranks)
    ]
    return Hardware(stages, [RankCost(0.1, 0.2)] * ranks, LinkCost(0.02, 1e4), memory)


def _seconds(work: Callable[[], object]) -> float:
    found: list[float] = []
    for _ in range(_ROUNDS):
        gc.collect()
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return median(found)


def _print(result: dict[str, Any]) -> None:
    print(f"{result['machine']}; medians of {_ROUNDS}")
    print(f"1F1B, {RANKS} ranks")
    print("microbatches  actions  made and verified  time alone  with memory and causes  microseconds an action")
    for size in result["sizes"]:
        each = "  ".join(f"{1e6 * size[part] / size['actions']:5.2f}" for part in ("build_s", "time_alone_s", "all_s"))
        print(f"{size['microbatches']:12d} {size['actions']:8d} {_times(size)}   {each}")
    print(f"{'to keep under':>21s} {_times(BOUNDS)}")
    auto = result["auto"]
    print(
        f"auto, {AUTO[0]} ranks x {AUTO[1]} microbatches: {auto['seconds']:.2f} s, to keep under {BOUNDS['auto_s']:g}"
    )
    print(f"at most {100 * auto['gap']:.2f}% above the bound of any order of its stages")
    for gain in result["gains"]:
        crowded = ", half as many processors as ranks" if gain["is_crowded"] else ""
        uneven = f"stages up to {1 + 2 * gain['spread']:g} x uneven{crowded}"
        print(
            f"{uneven}: {gain['cases']} cases, auto slower in {gain['slower']}, at the bound in {gain['auto_optimal']}"
        )
        print(f"  the best schedule drawn for all costs takes {100 * gain['over_drawn']:.1f}% longer (median)")
        print(f"  the best of all named ones {100 * gain['median']:.2f}% (median), at most {100 * gain['most']:.1f}%;")
        proven = f"which is proven to be the best in {gain['optimal']} cases"
        print(f"  {proven}; in the others {100 * gain['open_median']:.2f}% (median)")
        print(f"  no schedule could make that more than {100 * gain['possible']:.2f}% in the median of all")


def _times(seconds: dict[str, float]) -> str:
    return f"{seconds['build_s']:16.3f} s {1e3 * seconds['time_alone_s']:8.1f} ms {seconds['all_s']:21.3f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = OneLineParser(prog="python -m benchmarks.schedules", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--auto", type=int, default=0, metavar="N", help="random pipelines for auto (300 takes minutes)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output and nothing else")
    options: argparse.Namespace = parser.parse_args(arguments)
    try:
        seconds, gap = time_auto()
        result: dict[str, Any] = {
            "machine": f"{this_machine().processor}, {this_machine().cores} cores",
            "bounds": BOUNDS,
            "sizes": [asdict(time_size(microbatches)) for microbatches in MICROBATCHES],
            "auto": {"seconds": seconds, "gap": gap},
            "gains": [asdict(gain) for gain in compare_auto(options.auto, _told(options))],
        }
    except EvenflowError as error:
        print(f"benchmarks.schedules: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(result))
    else:
        _print(result)
    return 1 if any(gain["slower"] for gain in result["gains"]) else 0


def _told(options: argparse.Namespace) -> Callable[[int], None]:
    def tell(done: int) -> None:
        if done % 20 == 0 or done == options.auto:
            print(f"{done} of {options.auto} pipelines", file=sys.stderr)

    return tell


if __name__ == "__main__":
    sys.exit(main())
