"""Which process has which place, and how devices are shared out between axes."""

from __future__ import annotations

import pytest

from evenflow.errors import InputError
from evenflow.plan import Axes, Coordinates, check_zero, choose_axes


def test_tp_is_fastest_then_dp_then_pp() -> None:
    axes = Axes(pp=2, dp=3, tp=2)
    assert [axes.coordinates(process) for process in (0, 1, 2, 5, 6, 11)] == [
        Coordinates(0, 0, 0),
        Coordinates(0, 0, 1),
        Coordinates(0, 1, 0),
        Coordinates(0, 2, 1),
        Coordinates(1, 0, 0),
        Coordinates(1, 2, 1),
    ]
    assert [axes.process(axes.coordinates(process)) for process in range(axes.processes)] == list(range(12))


def test_groups_hold_the_processes_that_differ_on_one_axis() -> None:
    axes = Axes(pp=2, dp=3, tp=2)
    at = axes.coordinates(9)
    assert axes.pipeline(at) == (3, 9)
    assert axes.replicas(at) == (7, 9, 11)
    assert axes.shards(at) == (8, 9)


@pytest.mark.parametrize(
    ("devices", "asked", "expected"),
    [
        (8, {}, Axes(pp=8)),
        (8, {"dp": 2}, Axes(pp=4, dp=2)),
        (8, {"dp": 2, "tp": 4}, Axes(pp=1, dp=2, tp=4)),
        (8, {"pp": 2, "dp": 2}, Axes(pp=2, dp=2)),
    ],
)
def test_the_pipeline_takes_what_is_left(devices: int, asked: dict[str, int], expected: Axes) -> None:
    assert choose_axes(devices, **asked) == expected


@pytest.mark.parametrize(
    ("devices", "asked", "line"),
    [
        (4, {"dp": 3}, "--dp 3 does not divide 4 processes; 3 processes, or a multiple of that, would do"),
        (8, {"tp": 2, "dp": 8}, "--tp 2 --dp 8 does not divide 8 processes; 16 processes, or a multiple"),
        (4, {"pp": 4, "dp": 2}, r"--pp 4 --dp 2 needs 4 x 2 = 8 processes, and there are 4; 8 would do"),
        (4, {"pp": 2, "exactly": True}, "--pp 2 needs 2 processes, and there are 4; 2 would do"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(devices: int, asked: dict[str, int], line: str) -> None:
    with pytest.raises(InputError, match=line):
        choose_axes(devices, **asked)


def test_unknown_zero_is_refused() -> None:
    with pytest.raises(InputError, match="--zero 2 is not known; 0 or 1 would do"):
        check_zero(2)
