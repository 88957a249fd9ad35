"""Spans come from marks that are read once a step; a made-up device shows how events are tied to the host's clock."""

from __future__ import annotations

import time

import pytest
import torch

from evenflow.runtime.clock import CudaClock, HostClock, ProcessorClock, clock_of


class Device:
    """A stream whose work is done later than it is asked for, with a clock of its own; times in seconds of the host."""

    def __init__(self) -> None:
        self.host = 100.0
        self.done_at = 100.0  # when the stream will have done all that it was given
        self.drift = 7.0  # what its clock shows at the host's zero
        self.events = 0
        self.waits = 0

    def event(self) -> Event:
        self.events += 1
        return Event(self)

    def work(self, seconds: float) -> None:
        """Launch a kernel; the launch itself takes a millisecond."""
        self.host += 0.001
        self.done_at = max(self.done_at, self.host) + seconds


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device

    def record(self) -> None:
        self.device.done_at = max(self.device.done_at, self.device.host)
        self.at = self.device.done_at

    def synchronize(self) -> None:
        self.device.waits += 1
        self.device.host = max(self.device.host, self.at)

    def elapsed_time(self, end_event: Event) -> float:
        assert self.at <= self.device.host, "the event was read before it happened"
        return ((end_event.at + self.device.drift) - (self.at + self.device.drift)) * 1e3


def test_host_marks_are_in_order_and_read_once() -> None:
    clock = HostClock()
    before = time.perf_counter()
    for _ in range(3):
        clock.mark()
    moments = clock.read()
    assert before <= moments[0] <= moments[1] <= moments[2] <= time.perf_counter()
    assert clock.read() == []


def test_time_that_others_have_the_core_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads, whose time the system adds up."""
    worked = iter([10.0, 16.0])
    monkeypatch.setattr(time, "process_time", lambda: next(worked))
    clock = ProcessorClock(2)
    clock.mark()
    clock.mark()
    assert clock.read() == [5.0, 8.0]
    assert clock.read() == []


def test_spans_are_those_of_the_work_not_of_its_launch() -> None:
    device = Device()
    clock = CudaClock(device.event, lambda: device.host)
    for _ in range(2):
        clock.mark()
        device.work(0.5)
        clock.mark()
    assert device.waits == 0, "a mark waits for nothing"
    assert device.host == pytest.approx(100.002)
    assert clock.read() == pytest.approx([100.0, 100.501, 100.501, 101.001], abs=1e-9)


def test_a_wait_of_the_host_is_a_gap_of_the_device() -> None:
    device = Device()
    clock = CudaClock(device.event, lambda: device.host)
    clock.mark()
    device.work(0.5)
    clock.mark()
    device.host += 2.0  # a receive that takes long
    clock.mark()
    device.work(0.25)
    clock.mark()
    start, end, again, last = clock.read()
    assert again - end == pytest.approx(2.001 - 0.501)
    assert last - again == pytest.approx(0.251)
    assert start == pytest.approx(100.0)


def test_events_are_used_again_and_tied_in_every_step() -> None:
    device = Device()
    clock = CudaClock(device.event, lambda: device.host)
    for step in range(5):
        device.drift += step  # a clock that jumps between steps changes nothing
        begin = device.host
        for _ in range(4):
            clock.mark()
            device.work(0.1)
            clock.mark()
        moments = clock.read()
        assert moments[0] == pytest.approx(begin)
        assert moments[-1] == pytest.approx(device.host)
    assert device.events == 8 + 1
    assert device.waits == 5 * 2
    assert clock.read() == []


def test_the_clock_follows_the_device() -> None:
    assert isinstance(clock_of(torch.device("cpu")), HostClock)
    assert isinstance(clock_of(torch.device("cuda", 0)), CudaClock)
