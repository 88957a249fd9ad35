"""Made-up stages, links and caps on which `auto` is held against the named schedules: for tests and the benchmark."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from evenflow.cost import LinkCost, RankCost, StageCost, StageMemory
from evenflow.program import SCHEDULES, build_program, compute_order, lower, misfit, peak_bytes, place
from evenflow.search import plan_work
from evenflow.simulate import Hardware, step_seconds


@dataclass(frozen=True, slots=True)
class UnevenCase:
    """One pipeline; `spread` 0 means equal stages, 1 that the slowest takes up to three times the fastest."""

    stage_rank: tuple[int, ...]
    microbatches: int
    spread: float
    hardware: Hardware
    caps: list[float]

    def crowded(self) -> UnevenCase:
        """The same pipeline on half as many processors as ranks."""
        return replace(self, hardware=replace(self.hardware, at_once=max(len(self.caps) // 2, 1)))

    def best_named(self, drawn: bool = False) -> tuple[float, str]:
        """The fastest named schedule under the caps, and its step; infinite where none fits.

        Args:
            drawn: only those that are drawn once for all costs.
        """
        best = (float("inf"), "none")
        work = plan_work(self.stage_rank, self.microbatches, self.hardware)
        for name, schedule in SCHEDULES.items():
            if misfit(name, self.stage_rank) is not None or (drawn and schedule.by_costs):
                continue
            order = compute_order(name, self.stage_rank, self.microbatches, work)
            for posted_by in (work, None):  # by its costs, as in a plan, and evenly
                program = lower(order, self.stage_rank, self.microbatches, posted_by)
                peaks = [peak_bytes(program, self.hardware.memory, rank) for rank in range(len(self.caps))]
                if all(peak <= cap for peak, cap in zip(peaks, self.caps, strict=True)):
                    best = min(best, (step_seconds(program, self.hardware), name))
        return best


def uneven_case(seed: int, most_ranks: int = 16) -> UnevenCase:
    """The case of a seed: 2 to `most_ranks` ranks, one or two stages each, caps from 1F1B's need to nine times it."""
    random = Random(seed)
    ranks = random.randint(2, most_ranks)
    per_rank = random.choice([1, 1, 1, 2])
    stage_rank = place(random.choice(["loop", "v"]), ranks, ranks * per_rank)
    microbatches = random.choice([ranks, 2 * ranks, 3 * ranks, random.randint(2, 40)])
    spread = random.choice([0.0, 0.1, 0.5, 1.0])
    stages: list[StageCost] = []
    for _ in stage_rank:
        forward, half, weight = (
            seconds * random.uniform(1, 1 + 2 * spread)
            for seconds in (1.0, random.uniform(0.8, 1.2), random.uniform(0.4, 1.0))
        )
        stages.append(StageCost(forward, half + weight, half, weight))
    memory = [
        StageMemory(0, random.randint(0, 20), 100, 50, 10 if stage else 0, 10 if stage < len(stages) - 1 else 0, 0, 0)
        for stage in range(len(stages))
    ]
    link = LinkCost(random.choice([0.0, 0.02, 0.2]), random.choice([1e9, 100.0]))
    hardware = Hardware(stages, [RankCost(0.1, 0.2)] * ranks, link, memory)
    usual = build_program("1f1b" if per_rank == 1 else "interleaved", stage_rank, microbatches)
    need = max(peak_bytes(usual, memory, rank) for rank in range(ranks))
    return UnevenCase(stage_rank, microbatches, spread, hardware, [need * random.choice([1.0, 1.5, 2.2, 9.0])] * ranks)
