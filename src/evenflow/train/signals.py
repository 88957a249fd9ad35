"""SIGINT and SIGTERM end a run between two things it does, never in the middle of one.

While the run prepares it asks `check` at every turn; once its ranks train, the first signal lets the step end.
Raising from the handler itself would not do: the error would come out of whatever library code runs at that
moment, which may swallow it or not survive it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from evenflow.errors import StoppedError


class StopSignals:
    """Listens for both signals while it is entered.

    Attributes:
        received: the first signal that came, here or elsewhere.
        again: whether this process was sent a second one itself.
        hear: called by `check`, to take in what other hosts say meanwhile.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.again = False
        self._own = False
        self.hear: Callable[[], None] = lambda: None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not the main thread: signals are its business
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """End a run that has no step to wait for.

        Raises:
            StoppedError: a signal came.
        """
        self.hear()
        if self.received is not None:
            raise StoppedError(f"stopped by {signal.Signals(self.received).name} before the first step", self.received)

    def check_again(self) -> None:
        """End a run whose step is being waited for, when asked a second time.

        Raises:
            StoppedError: a second signal came.
        """
        if self.again and self.received is not None:
            raise StoppedError(
                "stopped at once by a second signal; steps since the last checkpoint are lost", self.received
            )

    def heard_elsewhere(self, number: int) -> None:
        """Another host's worker was asked to stop: one wish, however many hosts hear of it, and in whatever order.

        srun and torchrun send a signal to every node, so this process's own first one may well come after.
        """
        if self.received is None:
            self.received = number

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._own:
            self.again = True
        self._own = True
        if self.received is None:
            self.received = number
