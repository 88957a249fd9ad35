"""Why: the pictures in the schedules' files are what people read first; one that lies is worse than none.

Every schedule of the registry is looked at. A picture whose lines run on (`...`) shows a method, not an order; only a
schedule whose order depends on costs may have such a one.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import pytest

from evenflow.cost import StageCost
from evenflow.program import action_text, even_work, parse_action
from evenflow.program.schedules import FORWARD_ONLY, SCHEDULES, Schedule
from evenflow.program.times import encode, order_times

ALL = SCHEDULES | {"forward-only": FORWARD_ONLY}


def _lines(docstring):
    """A picture's lines: rank and cells."""
    return re.findall(r"^    rank (\d+) \| (.*)$", docstring or "", re.M)


def _read(lines):
    """A picture's cells: for each rank, (column, token) of each action; and where it shows ranks waiting."""
    assert [int(rank) for rank, _ in lines] == list(range(len(lines))), "ranks stand from 0 on, each once"
    width = max(len(token) for _, cells in lines for token in cells.split()) + 1
    ranks, waits = [], []
    for rank, cells in lines:
        found = [(match.start(), match[0]) for match in re.finditer(r"\S+", cells)]
        assert all(at % width == 0 for at, _ in found), f"a cell of rank {rank} is not in its column"
        stage = "" if re.match(r"\d", found[0][1]) else rank  # where a rank has one stage its number is left out
        ranks.append([(at // width, f"{stage}{token}") for at, token in found if token != "."])
        waits.append([at // width for at, token in found if token == "."])
    return ranks, waits


def _drawn(order, times, has_numbers):
    """The picture of an order, as its file should have it."""
    cells = [[action_text(own) if has_numbers else action_text(own).lstrip("0123456789") for own in o] for o in order]
    width = max(len(cell) for own in cells for cell in own) + 1
    lines = []
    for rank, (own, starts) in enumerate(zip(cells, times.start, strict=True)):
        columns = dict(zip(map(int, starts), own, strict=True))
        first, last = min(columns), max(columns)
        line = [columns.get(at, "." if at > first else "").ljust(width) for at in range(last + 1)]
        lines.append(f"    rank {rank} | {''.join(line)}".rstrip())
    return "\n".join(lines)


def _check(name: str, schedule: Schedule, docstring: str | None) -> None:
    """Hold a schedule's picture against what it makes."""
    lines = _lines(docstring)
    assert lines, (
        f"{name}: the docstring of its file has no picture; a small case would do, "
        "with a line `    rank 0 | F0 F1 B0 B1` for each rank"
    )
    if any("..." in cells for _, cells in lines):
        assert schedule.by_costs, f"{name}: its picture runs on (...), but its order is the same for all costs: draw it"
        return
    ranks, waits = _read(lines)
    actions = [[parse_action(token) for _, token in cells] for cells in ranks]
    where = {action.stage: rank for rank, own in enumerate(actions) for action in own}
    m = max(action.microbatch for own in actions for action in own) + 1
    work = even_work([where[stage] for stage in range(len(where))], m)
    order = schedule.make(work)
    work = replace(work, costs=(StageCost(1.0, 1.0, 1.0, 1.0),) * work.stages)
    times = order_times(encode(order, work), work)
    for cells, dots, own, starts in zip(ranks, waits, order, times.start, strict=True):
        columns = [column for column, _ in cells]
        right = [token for _, token in cells] == list(map(action_text, own)) and columns == starts
        right = right and dots == sorted(set(range(columns[0], columns[-1])) - set(columns))
        drawn = _drawn(order, times, work.stages > work.ranks)
        assert right, f"{name}: its picture is not what it makes, which is\n{drawn}"


@pytest.mark.parametrize("name", ALL)
def test_a_picture_shows_what_the_schedule_makes_and_when(name):
    _check(name, ALL[name], sys.modules[ALL[name].make.__module__].__doc__)


@pytest.mark.parametrize(
    ("docstring", "said"),
    [
        (None, "has no picture"),
        ("GPipe.", "has no picture"),
        ("\n    rank 0 | F0 F1 ... B0\n    rank 1 |    F0 F1 ...\n", "its order is the same for all costs"),
        ("\n    rank 0 | F0 F1 .  B1 .  B0\n    rank 1 |    F0 F1 B0 B1\n", "its picture is not what it makes"),
        ("\n    rank 0 | F0 F1    B0 .  B1\n    rank 1 |    F0 F1 B0 B1\n", "its picture is not what it makes"),
    ],
)
def test_a_schedule_without_its_picture_is_told_what_it_lacks(docstring, said):
    with pytest.raises(AssertionError, match=said):
        _check("gpipe", SCHEDULES["gpipe"], docstring)


def test_a_wrong_picture_is_shown_the_right_one():
    right = "    rank 0 | F0 F1 .  .  B0 B1\n    rank 1 |    F0 F1 B0 B1"
    with pytest.raises(AssertionError) as caught:
        _check("gpipe", SCHEDULES["gpipe"], right.replace(".  .  B0 B1", ".  B0 .  B1"))
    shown = [line.strip() for line in str(caught.value).splitlines()]
    assert [line.strip() for line in right.splitlines()] == [line for line in shown if line.startswith("rank ")]
    _check("gpipe", SCHEDULES["gpipe"], right)
