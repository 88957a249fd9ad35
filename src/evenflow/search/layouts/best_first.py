"""The search: layouts by their bound, the lowest first, until the next bound is no better than the best step found."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evenflow.cost.preset import PresetCosts
from evenflow.plan import Axes
from evenflow.search.layouts.bounds import bounds
from evenflow.search.layouts.layout import Layout
from evenflow.search.layouts.solve import Found, Solver

_CHUNK = 512  # layouts whose bound with memory is worked out at a time
_TRIED = 3  # layouts that stand for axes which the search had no need of
_WORK = 6_000_000  # actions that a search may walk through; then it says how far it may be from the best


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search came to.

    Attributes:
        best: the best layout; None where none fits.
        bound_s: no layout has a shorter step.
        solved: every layout that was solved, the best first.
        closest: where none fits, the one that lacks least.
        layouts: how many layouts there are.
        simulated: how many splits were played.
        is_whole: whether every layout was solved or has a bound above the best step.
    """

    best: Found | None
    bound_s: float
    solved: tuple[Found, ...]
    closest: Found | None
    layouts: int
    simulated: int
    is_whole: bool


def best_first(
    layouts: Sequence[Layout],
    costs: PresetCosts,
    solver: Solver,
    cutoff: float = np.inf,
    work: int = _WORK,
    runners_up: int = 0,
) -> Searched:
    """Search all layouts; those that cannot be under `cutoff` are passed over.

    Args:
        layouts: the space.
        costs: of its layers.
        solver: what solves one.
        cutoff: a step that is to be beaten.
        work: actions that may be walked through.
        runners_up: how many other axes than the best's are to be solved at least.
    """
    own = (costs, solver.cap, solver.wish)
    rough = bounds(layouts, *own, with_memory=False, mean_speed=solver.mean_speed)
    by_rough = np.argsort(rough, kind="stable")
    heap: list[tuple[float, int]] = []
    solved: list[Found] = []
    closest: Found | None = None
    taken = simulated = spent = 0
    unproved = np.inf  # the least bound of what was solved without looking at every split
    limit = cutoff
    while True:
        while taken < len(layouts) and (not heap or rough[by_rough[taken]] < heap[0][0]):
            if rough[by_rough[taken]] >= limit:
                taken = len(layouts)
                break
            chunk = by_rough[taken : taken + _CHUNK]
            taken += len(chunk)
            fine = bounds([layouts[at] for at in chunk], *own, mean_speed=solver.mean_speed)
            for at, bound in zip(chunk.tolist(), fine.tolist(), strict=True):
                if np.isfinite(bound):
                    heapq.heappush(heap, (bound, at))
        if not heap or heap[0][0] >= limit or spent > work:
            break
        bound, at = heapq.heappop(heap)
        found = solver.solve(layouts[at], limit)
        simulated += found.simulated
        if not found.is_all:
            unproved = min(unproved, max(bound, found.bound_s))
        spent += found.simulated * 40 + layouts[at].stages * layouts[at].microbatches * 12
        if np.isfinite(found.step_s):
            solved.append(found)
            limit = min(limit, found.step_s)
        elif closest is None or found.over_bytes < closest.over_bytes:
            closest = found
    left = heap[0][0] if heap else np.inf
    unsolved = [at for _, at in heap] + by_rough[taken:].tolist()
    others = {own.layout.axes for own in solved}
    solved += _runners_up([layouts[at] for at in unsolved], solver, others, max(runners_up + 1 - len(others), 0))
    solved.sort(key=lambda own: own.step_s)
    best = solved[0] if solved else None  # one of the runners-up, where work ended the search, may be the best
    limit = min(limit, best.step_s) if best else limit
    least = min(left, unproved, *(rough[by_rough[taken:]].tolist()[:1] or [np.inf]), limit)
    return Searched(best, float(least), tuple(solved), closest, len(layouts), simulated, bool(left >= limit))


def _runners_up(layouts: Sequence[Layout], solver: Solver, others: set[Axes], wanted: int) -> list[Found]:
    """The best of layouts of other axes, of which few are solved: those whose bounds are the lowest.

    They cannot be the best of all unless work ended the search.
    """
    lowest: dict[Axes, list[tuple[float, Layout]]] = {}
    for own, bound in _bounded([own for own in layouts if own.axes not in others] if wanted else [], solver):
        lowest.setdefault(own.axes, []).append((bound, own))
    found: list[Found] = []
    for group in list(lowest.values())[: 2 * wanted]:
        tried: list[Found] = []
        for bound, own in group[:_TRIED]:
            best_s = min((other.step_s for other in tried), default=np.inf)
            if bound >= best_s:
                break
            tried.append(solver.solve(own, best_s))
        fitting = [own for own in tried if np.isfinite(own.step_s)]
        found += fitting
        wanted -= bool(fitting)
        if not wanted:
            break
    return found


def _bounded(layouts: Sequence[Layout], solver: Solver) -> list[tuple[Layout, float]]:
    """Layouts that may fit and their bounds, the lowest first; of so many the lowest by what they compute alone."""
    if not layouts:
        return []
    own = (solver.costs, solver.cap, solver.wish)
    rough = bounds(layouts, *own, with_memory=False, mean_speed=solver.mean_speed)
    near = [layouts[at] for at in np.argsort(rough, kind="stable")[:_CHUNK].tolist()]
    fine = bounds(near, *own, mean_speed=solver.mean_speed)
    return [(near[at], float(fine[at])) for at in np.argsort(fine, kind="stable").tolist() if np.isfinite(fine[at])]
