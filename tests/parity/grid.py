"""Every layout that parity is shown for, in one place: its axes, which values go together, and the part that CI runs.

`make parity` runs all of it. CI runs a covering subset: every pair of values of two axes that go together is in some
case. To add an axis, add its values to `AXES`; what a case has beside its layout goes to the ranks as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest

from evenflow.program import AUTO, SCHEDULES
from evenflow.spec import RECOMPUTES

MIXED = "mixed"  # every layer in another way than the one before
AXES: dict[str, Sequence[Any]] = {
    "schedule": [*SCHEDULES, AUTO],
    # Where stages are: as the schedule has them, and several a rank in loop, in V, and one more on the first rank.
    "placement": ["own", "loop", "v", "uneven"],
    "ranks": [2, 3, 4],
    "microbatches": [1, 4, 5, 8],
    "recompute": [*RECOMPUTES, MIXED],
}
Case = dict[str, Any]


def _goes_together(case: Case) -> bool:
    """Whether a schedule runs a placement; `auto` is tried in two, since making its orders takes seconds."""
    if case["schedule"] == AUTO:
        return case["placement"] in ("own", "v")
    return case["placement"] == "own" or not SCHEDULES[case["schedule"]].exactly


def all_cases() -> list[Case]:
    """The whole grid."""
    cases = (dict(zip(AXES, values, strict=True)) for values in product(*AXES.values()))
    return [case for case in cases if _goes_together(case)]


def pairs_of(case: Case) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """All pairs of values of two axes that a case has."""
    return set(combinations(case.items(), 2))


def covering(cases: Sequence[Case]) -> list[Case]:
    """A part of `cases` that has every pair that they have: next is always the first with the most pairs still open."""
    missing = set().union(*map(pairs_of, cases))
    chosen: list[Case] = []
    while missing:
        best = max(cases, key=lambda case: len(pairs_of(case) & missing))
        chosen.append(best)
        missing -= pairs_of(best)
    return chosen


def grid() -> list[Any]:
    """The whole grid as parameters; what CI leaves out is marked `full`."""
    cases = all_cases()
    in_ci = covering(cases)
    return [
        pytest.param(case, id="-".join(map(str, case.values())), marks=() if case in in_ci else pytest.mark.full)
        for case in cases
    ]
