"""Profiles of other tests are measured briefly, and those that are to hold of seconds are not."""

from __future__ import annotations

from typing import Any

import pytest

from evenflow.launch import Channel, ForkServer
from evenflow.measure.layers import Repeats
from tests.conftest import BRIEF_S


def tells(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """How long a measuring rank would time layers."""
    channel.send({"kind": "result", "seconds": [Repeats().seconds, Repeats(seconds=0.25).seconds]})


def told_by_a_rank(server: ForkServer) -> list[float]:
    group = server.start("test", "tests.measure.test_brief:tells", 1, {})
    (found,) = [item[1] for item in group.messages() if item is not None]
    return found["seconds"]


def test_a_rank_of_a_test_times_layers_briefly_unless_told_how_long(server: ForkServer) -> None:
    assert told_by_a_rank(server) == [BRIEF_S, 0.25]


@pytest.mark.usefixtures("measured_at_length")
def test_where_seconds_count_it_is_as_for_a_user(server: ForkServer) -> None:
    assert told_by_a_rank(server) == [Repeats().seconds, 0.25]
    assert Repeats().seconds > BRIEF_S
