"""How much to recompute: what was asked for, or with `auto` the cheapest that fits the memory limit.

Of a given split, what a rank has to run again follows from its own memory alone. Which blocks do what is a question of
how many and of their order. A backward begins at a stage's end and frees what blocks saved as it goes; of two blocks
side by side, the one that holds more in passing should come later in it, so earlier in the stage: the most that is held
is what both saved, and what the end's block holds in passing. So the first blocks are those of the way that holds most
in passing (as a rule the whole forward), and of all numbers of blocks for each way the one that adds the fewest seconds
and fits is taken, by trying all.

The split and what is recomputed hang on each other. So splits are taken from where memory is free, from where all
attention, and where everything is recomputed; each is given its cheapest way, then split anew with that; and the
shortest simulated step of all wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations_with_replacement
from math import inf

from evenflow.cost import MemoryModel
from evenflow.errors import ImpossibleError, InputError
from evenflow.program import InputBackward, peak_bytes
from evenflow.search.problem import Problem, Split
from evenflow.search.solve import Solution, searched_program, solve
from evenflow.spec import RECOMPUTES, Layer, Model, Recompute, RecomputeWish
from evenflow.units import format_bytes

Modes = tuple[Recompute, ...]
_Found = tuple[Modes, Problem, Solution]
_ROUNDS = 3  # of splitting anew; most problems stay as they are after the first


def solve_recomputing(problem: Problem, model: Model, wish: RecomputeWish, split: Split | None) -> _Found:
    """Solve a problem with its layers recomputed as is wished.

    Args:
        problem: with costs and bytes of layers that recompute nothing.
        model: its layers.
        wish: the same for all layers, or `auto`.
        split: the layers of each stage where they are given.

    Returns:
        What each layer does, the problem that this makes, and its solution.

    Raises:
        InputError: there is no attention to recompute.
        ImpossibleError: nothing fits the memory limit; whether recomputing would do.
    """
    if wish == "auto":
        return _solve_least(problem, model, split)
    modes = model.recomputing(wish)
    if wish == "selective" and "selective" not in modes:
        raise InputError(f"no attention is to be seen inside the blocks of {model.name}; --recompute full would do")
    own = _under(problem, model, modes)
    try:
        return modes, own, solve(own, split)
    except ImpossibleError as error:
        full = model.recomputing("full")
        if modes == full:
            raise
        raise ImpossibleError(f"{error}; {_if_recomputed(_under(problem, model, full), split)}") from None


def _under(problem: Problem, model: Model, modes: Modes) -> Problem:
    return replace(problem, model=model.under(modes), costs=problem.costs.under(modes))


def _if_recomputed(problem: Problem, split: Split | None) -> str:
    """What recomputing would make of a problem that is not possible without."""
    try:
        peak = _peak(solve(problem, split))
    except ImpossibleError:
        return "--recompute full would not be enough"
    return f"--recompute full would fit, in {format_bytes(peak)}"


def _solve_least(problem: Problem, model: Model, split: Split | None) -> _Found:
    free = solve(replace(problem, limit=inf), split)
    none = model.recomputing("none")
    if _peak(free) <= problem.limit:
        return none, problem, free
    found: list[_Found] = []
    closest: ImpossibleError | None = None
    starts = dict.fromkeys([free.split])
    for wish in RECOMPUTES:
        modes = model.recomputing(wish)
        own = _under(problem, model, modes)
        # A split is searched under a program that may hold more than the one it gets, so that of free memory is tried.
        for wanted in dict.fromkeys([solve(replace(own, limit=inf), split).split, split]):
            try:
                solution = solve(own, wanted)
            except ImpossibleError as error:
                closest = error
                continue
            found.append((modes, own, solution))
            starts.setdefault(solution.split)
    for start in starts:
        found += _from(problem, model, start, given=split is not None)
    if not found and closest is not None:
        raise closest
    return min(found, key=lambda own: (round(own[2].timeline.step_s, 9), own[0].count("full"), -own[0].count("none")))


def _from(problem: Problem, model: Model, start: Split, given: bool) -> Iterator[_Found]:
    """What the cheapest way for a split comes to, then that for the split which is best under it, and so on."""
    seen: set[Split] = set()
    split = start
    for _ in range(1 if given else _ROUNDS):
        seen.add(split)
        modes = cheapest_fit(problem, model, split)
        if modes is None:
            return
        own = _under(problem, model, modes)
        for wanted in (split,) if given else (split, None):
            try:
                solution = solve(own, wanted)
            except ImpossibleError:  # its program holds more than the one that was tried
                continue
            yield modes, own, solution
            split = solution.split
        if split in seen:
            return


def cheapest_fit(problem: Problem, model: Model, split: Split) -> Modes | None:
    """What each layer has to recompute so that a split fits, at the least cost; None where it does not fit at all.

    Args:
        problem: with costs of layers that recompute nothing.
        model: its layers.
        split: the layers of each stage.
    """
    program, where = searched_program(problem), problem.stage_rank
    layers = _Layers(list(model.layers), model.tied_bytes, model.tied_gradient_bytes)
    under = {own: model.under(own).layers for own in RECOMPUTES}
    bytes_of = MemoryModel(layers, problem.costs.shares, problem.costs.process_bytes, problem.costs.replicas)
    memory = list(bytes_of.stages(split, where))
    halves = any(isinstance(action, InputBackward) for actions in program.ranks for action in actions)
    in_order = partial(_most_in_passing, model, halves)
    modes: list[Recompute] = ["none"] * len(model.layers)
    for rank in range(problem.ranks):
        stages = [stage for stage, owner in enumerate(where) if owner == rank]
        blocks = [layer for stage in stages for layer in split[stage] if model.layers[layer].recomputed]
        for tried in _by_cost(problem, model, blocks, in_order):
            for layer, own in zip(blocks, tried, strict=True):
                modes[layer], layers.layers[layer] = own, under[own][layer]
            for stage in stages:
                own_bytes = bytes_of.stage(split[stage], has_both=where[0] == where[-1])
                memory[stage] = bytes_of.on_rank(own_bytes, is_first=stage == stages[0])
            if peak_bytes(program, memory, rank) <= problem.limit:
                break
        else:
            return None
    return tuple(modes)


@dataclass(slots=True)
class _Layers:
    """Layers that are changed one by one, to see what a stage of them holds."""

    layers: list[Layer]
    tied_bytes: int
    tied_gradient_bytes: int


def _most_in_passing(model: Model, halves: bool, layer: int) -> tuple[Recompute, ...]:
    """The ways to recompute a layer, that first which holds most in passing."""

    def passing(recompute: Recompute) -> int:
        own = model.layers[layer].under(recompute)
        return own.input_peak_bytes if halves else own.backward_peak_bytes

    return tuple(sorted(RECOMPUTES, key=passing, reverse=True))


def _by_cost(
    problem: Problem, model: Model, blocks: list[int], in_order: Callable[[int], tuple[Recompute, ...]]
) -> list[Modes]:
    """All ways to have the first of some blocks do one thing, the next ones another; the cheapest first."""
    ways: dict[Modes, float] = {}
    order = in_order(blocks[0]) if blocks else RECOMPUTES
    for first, then in combinations_with_replacement(range(len(blocks) + 1), 2):
        counts = (first, then - first, len(blocks) - then)
        asked = [way for way, count in zip(order, counts, strict=True) for _ in range(count)]
        own: Modes = tuple(
            way if model.layers[layer].again(way) else "none" for layer, way in zip(blocks, asked, strict=True)
        )
        ways[own] = sum(problem.costs.layers[layer].again_s(way) for layer, way in zip(blocks, own, strict=True))
    return sorted(ways, key=ways.__getitem__)


def _peak(solution: Solution) -> int:
    return max(rank.peak_bytes for rank in solution.timeline.ranks)
