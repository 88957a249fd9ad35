"""Which ranks are called slow, by made-up steps."""

from __future__ import annotations

import random
import re

import pytest

from evenflow.train.pace import Pace


def lines(pace: Pace, steps: int, *busy: float) -> list[tuple[int, str]]:
    """What is said in so many steps of the same busy seconds, by step."""
    noise = random.Random(steps)
    said = []
    for step in range(1, steps + 1):
        said += [(step, line) for line in pace.take([own * noise.uniform(0.7, 1.4) for own in busy])]
    return said


@pytest.mark.parametrize("expected", [None, (0.2, 0.1), (0.12, 0.1), (0.2, 0.07)])
def test_a_rank_slowed_to_a_third_is_named_once_within_20_steps(expected: tuple[float, float] | None) -> None:
    pace = Pace(expected)
    assert not lines(pace, 40, 0.2, 0.1)
    ((step, line),) = lines(pace, 60, 0.2, 0.3)
    assert step <= 20
    assert re.match(r"warning: rank 1 is slow: it takes [23]\.\d times as long", line)
    ((step, line),) = lines(pace, 40, 0.2, 0.1)
    assert line == "rank 1 keeps up again"


def test_all_of_them_slow_is_the_machine_and_nobody() -> None:
    pace = Pace((0.1, 0.1, 0.1))
    assert not lines(pace, 30, 0.1, 0.1, 0.1)
    assert not lines(pace, 60, 0.5, 0.5, 0.5)


def test_a_measured_plan_knows_a_rank_that_is_slow_from_the_start() -> None:
    assert [line[:21] for _, line in lines(Pace((0.1, 0.1)), 20, 0.3, 0.1)] == ["warning: rank 0 is sl"]
    assert not lines(Pace(None), 20, 0.3, 0.1)  # a plan from FLOPs may be wrong by as much


def test_a_few_slow_steps_are_noise() -> None:
    pace = Pace(None)
    for _ in range(20):
        assert not lines(pace, 20, 0.1, 0.1)
        assert not lines(pace, 7, 0.1, 0.9)


def test_one_process_has_nobody_to_be_slower_than() -> None:
    assert not lines(Pace((0.1,)), 50, 9.0)
