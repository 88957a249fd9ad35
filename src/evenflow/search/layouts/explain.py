"""Why a plan is what it is: what limits it, what else was nearly as good, what fixed axes cost, and what would help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from evenflow.cost.preset import PresetCosts
from evenflow.errors import InputError
from evenflow.plan import Plan
from evenflow.search.layouts.best_first import Searched, best_first
from evenflow.search.layouts.layout import Space
from evenflow.search.layouts.solve import Found, Solver
from evenflow.units import format_bytes, format_percent, format_seconds

ALTERNATIVES = 5
_GAP = 0.05
_MORE = 2 * 2**30  # bytes that advice asks about
_WORTH = 0.005  # of the step: less is not worth a line
_QUICK = 200_000  # actions that the search behind a fixed axis may walk through


def notes(plan: Plan, searched: Searched, solver: Solver, space: Space, pinned: Sequence[str]) -> tuple[str, ...]:
    """Lines for a person, the most useful first; `pinned` are the axes that the user fixed."""
    assert searched.best is not None
    best, costs = searched.best, solver.costs
    return (
        *_gap(plan, searched), _limit(plan), *_head(best, costs), *_memory(best, solver),
        *_pins(best, solver, space, pinned), *_alternatives(best, searched.solved),
    )  # fmt: skip


def _gap(plan: Plan, searched: Searched) -> Iterator[str]:
    """Why the bound is not nearer, where it is far."""
    if plan.bound.gap <= _GAP:
        return
    if not searched.is_whole:
        yield (
            f"the step is {format_percent(plan.bound.gap)} above the bound: the search ended at its limit of "
            "work, with layouts left; fewer free axes would end it"
        )
        return
    yield (
        f"the step is {format_percent(plan.bound.gap)} above the bound, which counts blocks as if a rank could keep "
        "all of them in the stage that holds least at once, and each stage before it as a single block; all layouts "
        "whose bound is below the step were solved"
    )


def _limit(plan: Plan) -> str:
    """Where the step's time goes, and how full memory is."""
    step_s = plan.predicted.step_s
    busiest = max(plan.ranks, key=lambda rank: rank.busy_s)
    shares = {
        "compute and tp's exchanges": busiest.busy_s / step_s,
        "the update": max(rank.cost.optimizer_s for rank in plan.ranks) / step_s,
    }
    shares["waiting, filling, draining and gradients' exchange"] = max(1 - sum(shares.values()), 0.0)
    fullest = max(rank.peak_bytes for rank in plan.ranks)
    again = sum(own != "none" for own in plan.recompute)
    said = ", ".join(f"{name} {format_percent(share)}" for name, share in shares.items())
    memory = f"memory {format_percent(fullest / plan.memory_limit)} full"
    if again:
        memory += f", for which {again} of {len(plan.layers) - 2} blocks run again in their backward"
    return f"what limits it, on the busiest rank: {said}; {memory}"


def _head(best: Found, costs: PresetCosts) -> Iterator[str]:
    figures = costs.figures(best.layout.shape)
    every = figures.forward_s + figures.input_s[0] + figures.weight_s
    block, head = float(np.median(every[1:-1])), float(every[-1])
    pp = best.layout.pp
    if pp == 1:
        return
    if head > float(every.sum()) / pp:
        yield (
            f"the head alone exceeds an equal share: it is {format_percent(head / float(every.sum()))} of the "
            f"work, and a share over {pp} ranks is {format_percent(1 / pp)}"
        )
    elif head > 1.5 * block:
        held = [0] * pp
        for stage, layers in enumerate(best.split):
            held[best.layout.stage_rank[stage]] += len(layers)
        last = best.layout.stage_rank[-1]
        usual = int(np.median(held))
        fewer = usual - (held[last] - 1)
        tail = f": rank {last} holds {fewer} fewer" if fewer > 0 else ""
        yield f"the head is worth {head / block:.1f} blocks{tail}"


def _memory(best: Found, solver: Solver) -> Iterator[str]:
    """What a little more memory would make of the same layout."""
    if "full" not in best.modes and "selective" not in best.modes:
        return
    roomy = solver.with_more(_MORE)
    found = roomy.solve(best.layout)
    gain = best.step_s / found.step_s - 1
    if gain > _WORTH:
        yield f"{format_percent(gain)} faster with {format_bytes(_MORE)} more on each device"


def _pins(best: Found, solver: Solver, space: Space, pinned: Sequence[str]) -> Iterator[str]:
    """What each fixed axis costs, were the others kept."""
    for name in pinned:
        flag = f"--{name.replace('_', '-')} {getattr(space.pins, name)}"
        try:
            layouts = replace(space, pins=replace(space.pins, **{name: None})).layouts()
        except InputError:
            continue
        layouts = [own for own in layouts if solver.has_ranks(own)]
        freed = best_first(layouts, solver.costs, solver, cutoff=best.step_s / (1 + _WORTH), work=_QUICK).best
        gain = best.step_s / freed.step_s - 1 if freed is not None else 0.0
        if freed is not None and gain > _WORTH:
            would = f"{freed.layout.text()} would take {format_seconds(freed.step_s)}"
            yield f"{flag} costs {format_percent(gain)}: {would}"
        else:
            yield f"{flag} costs nothing that was found"


def _alternatives(best: Found, solved: Sequence[Found]) -> Iterator[str]:
    seen = {_kind(best)}
    for own in solved:
        if len(seen) > ALTERNATIVES:
            return
        if _kind(own) not in seen:
            seen.add(_kind(own))
            loss = own.step_s / best.step_s - 1
            yield f"{format_percent(loss)} slower: {own.layout.text()}, {format_seconds(own.step_s)}"


def _kind(found: Found) -> tuple[object, ...]:
    own = found.layout
    return own.axes, own.schedule, own.micro_batch_size
