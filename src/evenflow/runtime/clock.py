"""When a rank's work starts and ends, read without holding the work up: what the executor's spans are made from.

While a step runs, moments are only marked; their seconds are read once, at its end. On a CPU the work is done when
the call returns, so the host's clock is read on the spot. On a GPU the call returns long before the work is done, so
an event is put into the stream at the mark, and one event whose host time is known ties all others to the host's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Marks moments of one rank's work."""

    def mark(self) -> None:
        """Note that the work has come to this point."""

    def read(self) -> list[float]:
        """The moments marked since the last reading, in order, in seconds of `time.perf_counter`; waits for the work.

        Raises:
            RuntimeError: the device failed (CUDA reports the error of a kernel where it is waited for).
        """


class HostClock:
    """The clock of a rank whose work is done when the call returns."""

    def __init__(self) -> None:
        self._moments: list[float] = []

    def mark(self) -> None:
        """Note the time."""
        self._moments.append(time.perf_counter())

    def read(self) -> list[float]:
        """The times noted since the last reading."""
        moments, self._moments = self._moments, []
        return moments


class ProcessorClock:
    """The clock of a rank that shares its cores with others and never waits: seconds that cores have worked for it.

    What passes on the wall is then the others' time too, and who had how much of it is chance. The processor's time of
    this process, spread over its threads, is what it takes of a core; what taking turns costs it, caches that others
    have filled above all, is in it.

    Args:
        threads: that compute.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._moments: list[float] = []

    def mark(self) -> None:
        """Note the time."""
        self._moments.append(time.process_time() / self._threads)

    def read(self) -> list[float]:
        """The times noted since the last reading, of `time.process_time` for each thread."""
        moments, self._moments = self._moments, []
        return moments


class TimedEvent(Protocol):
    """What is used of `torch.cuda.Event`."""

    def record(self) -> None:
        """Put the event into the current stream."""

    def synchronize(self) -> None:
        """Return once the stream has come to the event."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this event to a later one; both have happened."""


def _cuda_event() -> TimedEvent:
    return torch.cuda.Event(enable_timing=True)


class CudaClock:
    """The clock of a rank whose work is in the current CUDA stream.

    A mark costs no wait. Events are used again in the next step, so their number is that of a step's marks. At the
    reading the stream is empty: one more event is recorded and waited for between two looks at the host's clock, and
    is taken to have happened half-way between them. The device's clock may drift from the host's; it is tied anew
    in every step.

    Args:
        new_event: makes an event.
        host: the host's clock, in seconds.
    """

    def __init__(
        self, new_event: Callable[[], TimedEvent] = _cuda_event, host: Callable[[], float] = time.perf_counter
    ) -> None:
        self._new_event = new_event
        self._host = host
        self._events: list[TimedEvent] = []
        self._marks = 0
        self._anchor: TimedEvent | None = None

    def mark(self) -> None:
        """Record an event."""
        if self._marks == len(self._events):
            self._events.append(self._new_event())
        self._events[self._marks].record()
        self._marks += 1

    def read(self) -> list[float]:
        """Wait for the last event; the host's seconds at which each happened."""
        marked, self._marks = self._events[: self._marks], 0
        if not marked:
            return []
        marked[-1].synchronize()
        anchor = self._anchor = self._anchor or self._new_event()
        before = self._host()
        anchor.record()
        anchor.synchronize()
        tied = (before + self._host()) / 2
        return [tied - event.elapsed_time(anchor) / 1e3 for event in marked]


def clock_of(device: torch.device) -> Clock:
    """The clock of a rank that computes on `device`."""
    return CudaClock() if device.type == "cuda" else HostClock()
