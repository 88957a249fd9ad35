"""Why: the pictures in the schedules' files are what people read first; one that lies is worse than none."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module

import pytest

from evenflow.cost import StageCost
from evenflow.program import action_text, even_work, parse_action
from evenflow.program.schedules import FORWARD_ONLY, SCHEDULES
from evenflow.program.times import encode, order_times

# Those of `automatic` and `listing` end in dots: they show a method, not an order.
DRAWN = ["one_f_one_b", "gpipe", "forward_only", "interleaved", "zb_h1", "zb_h2", "zb_v"]


def _read(name):
    """A picture's cells: for each rank, (column, token) of each action; and where it shows ranks waiting."""
    lines = re.findall(r"^    rank (\d) \| (.*)$", import_module(f"evenflow.program.schedules.{name}").__doc__, re.M)
    assert [int(rank) for rank, _ in lines] == list(range(len(lines)))
    width = max(len(token) for _, cells in lines for token in cells.split()) + 1
    ranks, waits = [], []
    for rank, cells in lines:
        found = [(match.start(), match[0]) for match in re.finditer(r"\S+", cells)]
        assert all(at % width == 0 for at, _ in found), f"a cell of rank {rank} is not in its column"
        stage = rank if width == 3 else ""  # where a rank has one stage its number is left out
        ranks.append([(at // width, f"{stage}{token}") for at, token in found if token != "."])
        waits.append([at // width for at, token in found if token == "."])
    return ranks, waits


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_shows_what_the_schedule_makes_and_when(name):
    ranks, waits = _read(name)
    actions = [[parse_action(token) for _, token in cells] for cells in ranks]
    where = {action.stage: rank for rank, own in enumerate(actions) for action in own}
    m = max(action.microbatch for own in actions for action in own) + 1
    work = even_work([where[stage] for stage in range(len(where))], m)
    schedules = {schedule.make.__module__.rpartition(".")[2]: schedule for schedule in SCHEDULES.values()}
    order = (FORWARD_ONLY if name == "forward_only" else schedules[name]).make(work)
    assert [[token for _, token in cells] for cells in ranks] == [list(map(action_text, own)) for own in order]
    work = replace(work, costs=(StageCost(1.0, 1.0, 1.0, 1.0),) * work.stages)
    times = order_times(encode(order, work), work)
    for cells, dots, starts in zip(ranks, waits, times.start, strict=True):
        columns = [column for column, _ in cells]
        assert columns == starts
        assert dots == sorted(set(range(columns[0], columns[-1])) - set(columns))


def test_every_schedule_that_is_drawn_by_hand_is_looked_at():
    modules = {schedule.make.__module__.rpartition(".")[2] for schedule in SCHEDULES.values()}
    assert modules - {"automatic"} <= set(DRAWN)
