"""Hosts' clocks are compared within the error that is claimed; where ranks share one nothing is asked at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from evenflow.runtime import AloneTransport, ClockOffset, InMemoryNetwork, clock_offset
from evenflow.runtime.host_clocks import host_clock_name


def compare(ahead_s: list[float], names: list[int]) -> list[ClockOffset]:
    """What every rank finds, where rank r's clock is `ahead_s[r]` ahead of the real one."""
    network = InMemoryNetwork(len(names), timeout_s=30)

    def clock_of(rank: int) -> Callable[[], float]:
        return lambda: time.perf_counter() + ahead_s[rank]

    def run(rank: int) -> ClockOffset:
        return clock_offset(network.transport(rank), rank, len(names), clock_of(rank), names[rank])

    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(run, range(len(names))))


@pytest.mark.parametrize("ahead", [[0.0, 5.0, -1e6], [3.0, 3.0, 7200.25]])
def test_offsets_are_right_within_the_claimed_error(ahead: list[float]) -> None:
    found = compare(ahead, [1, 2, 3])
    assert found[0].offset_s == found[0].error_s == 0.0
    for rank in (1, 2):
        true = ahead[0] - ahead[rank]
        assert abs(found[rank].offset_s - true) <= found[rank].error_s + 1e-9
        assert 0 < found[rank].error_s < 1


def test_ranks_of_rank_0s_host_ask_nothing_and_those_of_another_do() -> None:
    found = compare([0.0, 0.0, 50.0, 50.0], [7, 7, 8, 8])
    assert found[1].offset_s == found[1].error_s == 0.0
    assert all(abs(own.offset_s + 50) <= own.error_s + 1e-9 for own in found[2:])


def test_one_rank_alone_and_this_hosts_name() -> None:
    assert clock_offset(AloneTransport(), 0, 1).error_s == 0.0
    assert host_clock_name() == host_clock_name() < 2**52  # a float holds it exactly, so that zeros can be added to it
