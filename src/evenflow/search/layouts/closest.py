"""Where no layout was found to fit: the ones that need least are tried, and the closest says what it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evenflow.search.layouts.best_first import Searched
from evenflow.search.layouts.layout import Layout
from evenflow.search.layouts.solve import Found, Solver
from evenflow.units import format_bytes

_CLOSEST = 24  # layouts that are tried


def closest_of(searched: Searched, layouts: Sequence[Layout], solver: Solver) -> Searched:
    """A search that found nothing, with the layouts tried that need least: one may fit, where it ended early.

    `closest` is the one that lacks least, where none does.
    """

    def need(layout: Layout) -> float:
        figures = solver.costs.figures(layout.shape)
        step = solver.costs.step_figures(layout.shape, layout.dp, layout.zero)
        held = figures.saved_bytes[2].sum() + figures.passing_bytes[2].max() * layout.pp
        return float((step.state_bytes.sum() + held) / layout.pp)

    tried = [solver.solve(layout) for layout in sorted(layouts, key=need)[:_CLOSEST]]
    fitting = tuple(sorted((own for own in tried if np.isfinite(own.step_s)), key=lambda own: own.step_s))
    if fitting:
        return replace(searched, best=fitting[0], solved=fitting, bound_s=min(searched.bound_s, fitting[0].step_s))
    closest = min([*tried, *([searched.closest] if searched.closest else [])], key=lambda own: own.over_bytes)
    return replace(searched, closest=closest)


def closest_text(searched: Searched, solver: Solver, most: float, recompute: str) -> str:
    """The layout that lacks least memory, and how much.

    Args:
        searched: with its closest layout.
        solver: what solved it.
        most: all memory of the largest device.
        recompute: as it was asked for.
    """
    closest = searched.closest
    assert closest is not None
    rank, peak, cap = _tightest(closest, solver)
    would = ["more devices", "fewer fixed axes"]
    if len(solver.kinds) == 1 and peak * _ROOM <= most:
        would.append(f"a memory limit of {format_bytes(peak * _ROOM)}")
    more = "" if recompute in ("auto", "full") else "; --recompute auto needs less"
    said = "no plan fits" if searched.is_whole else "no plan was found to fit before the search ended at its work limit"
    return (
        f"{said}: of {searched.layouts} layouts the closest ({closest.layout.text()}) has rank {rank} "
        f"needing {format_bytes(peak)} of {format_bytes(cap)}, {format_bytes(peak - cap)} more than there is; "
        f"{', '.join(would[:-1])} or {would[-1]} would do{more}"
    )


_ROOM = 1.005  # times what is needed, so that a limit printed in three digits is enough


def _tightest(closest: Found, solver: Solver) -> tuple[int, float, float]:
    """The rank that is most over its own cap, what it needs, and that cap."""
    caps = np.array(closest.limits or [solver.cap] * len(closest.rank_peaks), dtype=np.float64)
    peaks = np.array(closest.rank_peaks)
    rank = int((peaks - caps).argmax())
    return rank, float(peaks[rank]), float(caps[rank])
