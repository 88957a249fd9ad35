"""The split of layers into stages: the exact partition first, then single-layer moves judged by the simulator.

The exact partition has the least bottleneck; it is not the schedule, whose fill and drain weigh stages
differently, so single layers are then moved from stage to stage for as long as the simulator says that the step
gets shorter. Where ranks hold several stages the partition evens out stages; the moves even out ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, pairwise

import numpy as np
from numpy.typing import NDArray

from evenflow.plan import StageCaps, least_needs, partition
from evenflow.program import Program, peak_forms
from evenflow.search.candidate import Candidate, try_split
from evenflow.search.problem import Problem, Split

# Actions that a search may simulate in all: some seconds of work; beyond it the best so far is taken.
_MOST_ACTIONS = 2_000_000
_SECOND = 400  # splits two moves away that are looked at where none at one move is better


def find_split(problem: Problem, program: Program) -> tuple[Candidate, int]:
    """The best split found for a program, every rank on a processor of its own; and how many were simulated."""
    memory = problem.memory
    start = _first_split(problem, program)
    best = try_split(start, program, problem.costs, memory)
    considered = 1
    most = max(_MOST_ACTIONS // sum(map(len, program.ranks)), 1)
    seen = {start}
    improved = True
    while improved:
        improved = False
        for split in chain(_neighbours(best.split), islice(_second_neighbours(best.split), _SECOND)):
            if split in seen or considered >= most:
                continue
            seen.add(split)
            candidate = try_split(split, program, problem.costs, memory)
            considered += 1
            if _rank_of(candidate, problem.limit) < _rank_of(best, problem.limit):
                best, improved = candidate, True
                break
    return best, considered


def _rank_of(candidate: Candidate, limit: float) -> tuple[float, float, float]:
    """What makes a candidate better: it fits, then a shorter step (ties within 1e-9), then more even ranks."""
    over = max(candidate.peak_bytes - limit, 0)
    return over, round(candidate.step_s, 9), candidate.timeline.imbalance


def _first_split(problem: Problem, program: Program) -> Split:
    seconds = [layer.forward_s + layer.backward_s for layer in problem.costs.layers]
    speeds = None if problem.costs.speeds is None else [problem.costs.speeds[rank] for rank in problem.stage_rank]
    if problem.stages > problem.ranks:  # what a stage needs depends on the others of its rank: the moves see to it
        return partition(seconds, problem.stages, speeds=speeds) or ()
    caps = StageCaps(_needs(problem, program), [problem.limit] * problem.stages)
    return partition(seconds, problem.stages, caps, speeds) or least_needs(caps)


def _needs(problem: Problem, program: Program) -> NDArray[np.float64]:
    """What every run of layers needs on every stage: exact, as each stage is alone on its rank."""
    memory = problem.memory
    layers = problem.layers
    runs = {(i, j): memory.on_rank(memory.stage(range(i, j))) for i in range(layers) for j in range(i + 1, layers + 1)}
    needs = np.zeros((program.stages, layers + 1, layers + 1))
    for stage in range(program.stages):
        forms = peak_forms(program, stage)
        for (first, end), own in runs.items():
            needs[stage, first, end] = max(form.bytes(own) for form in forms)
    return needs


def _second_neighbours(split: Split) -> Iterator[Split]:
    """Every split two moves away: what lies behind a split that is worse than both its neighbours."""
    for neighbour in _neighbours(split):
        yield from _neighbours(neighbour)


def _neighbours(split: Split) -> Iterator[Split]:
    """Every split with a run of adjacent boundaries moved by one layer.

    So a layer's worth can go from any stage to any other through those between, each of which keeps its count.
    """
    ends = [0, *(layers[-1] + 1 for layers in split)]
    for length in range(1, len(split)):
        for first in range(1, len(split) - length + 1):
            last = first + length - 1
            for by in (-1, 1):
                moved = [end + by if first <= at <= last else end for at, end in enumerate(ends)]
                if moved[first - 1] < moved[first] and moved[last] < moved[last + 1]:
                    yield tuple(tuple(range(*pair)) for pair in pairwise(moved))
