"""SIGINT and SIGTERM: at once while a run prepares, after the step once its ranks train."""

from __future__ import annotations

import signal
from contextlib import suppress
from types import FrameType
from typing import Any

from evenflow.errors import StoppedError


class StopSignals:
    """Listens for both signals while it is entered.

    Attributes:
        received: the first signal that came while ranks train.
        stop_after_step: whether ranks train; until then a signal ends the run at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.stop_after_step = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not the main thread: signals are its business
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.stop_after_step:
            raise StoppedError(f"stopped by {signal.Signals(number).name} before the first step", number)
        if self.received is not None:
            raise StoppedError("stopped at once by a second signal; steps since the last checkpoint are lost", number)
        self.received = number
