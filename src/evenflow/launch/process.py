"""A rank's process as whoever watches it sees it: the same calls whether it runs on this host or on another."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from evenflow.launch.channel import Channel, Message
from evenflow.launch.heartbeat import Page, Pulse


class Process(Protocol):
    """A running rank's process and its line to us."""

    pid: int
    host: str
    status: int | None

    @property
    def where(self) -> str:
        """` on HOST` for messages; nothing on this host."""

    @property
    def closed(self) -> bool:
        """Whether nothing more will come from it."""

    @property
    def lost(self) -> bool:
        """Whether the host it runs on is not heard of any more."""

    @property
    def pulse(self) -> Pulse | None:
        """What its heartbeat shows; None for a process on another host, whose memory is not shared."""

    @property
    def stopped(self) -> bool:
        """Whether the system says that it is stopped, as by SIGSTOP; never of a process on another host."""

    @property
    def blocked(self) -> bool:
        """Whether the system says that it waits for a disk and hears no signal; never of one on another host."""

    def fileno(self) -> int:
        """What to wait for with select."""

    def send(self, message: Message) -> None:
        """Send it a message; that it is gone is not an error here."""

    def waiting(self) -> list[Message]:
        """All messages that have come from it, without waiting for more."""

    def poll(self, wait_s: float) -> bool:
        """Whether it has ended, and `status` is known if it ever will be; waits up to some seconds."""

    def kill(self) -> None:
        """End it."""

    def close(self) -> None:
        """Hang up."""


class LocalProcess:
    """A process that this host's fork server made."""

    lost = False
    where = ""

    def __init__(
        self, pid: int, channel: Channel, exits: Callable[[float], dict[int, int]], page: Page, index: int
    ) -> None:
        self.pid = pid
        self._page = page
        self._index = index
        self.host = socket.gethostname()
        self.status: int | None = None
        self._channel = channel
        self._exits = exits

    @property
    def closed(self) -> bool:
        """Whether its end of the socket is closed."""
        return self._channel.closed

    @property
    def pulse(self) -> Pulse:
        """What it has shown of itself so far, also when it is dead."""
        return self._page.read(self._index)

    @property
    def stopped(self) -> bool:
        """Whether the system says that it is stopped (Linux)."""
        return self._state() in (b"T", b"t")

    @property
    def blocked(self) -> bool:
        """Whether the system says that it waits for a disk (Linux)."""
        return self._state() == b"D"

    def _state(self) -> bytes:
        """The letter of proc(5); empty where there is none."""
        try:
            facts = Path(f"/proc/{self.pid}/stat").read_bytes()
        except OSError:
            return b""
        return facts.rpartition(b")")[2].strip()[:1]

    def fileno(self) -> int:
        """Its socket's descriptor."""
        return self._channel.fileno()

    def send(self, message: Message) -> None:
        """Send it a message."""
        self._channel.send(message)

    def waiting(self) -> list[Message]:
        """All messages that have come."""
        return self._channel.waiting()

    def poll(self, wait_s: float) -> bool:
        """Whether the fork server has seen it end."""
        if self.status is None:
            # Taken out, so that a later rank with the same process id is not taken for dead.
            self.status = self._exits(wait_s).pop(self.pid, None)
        return self.status is not None

    def kill(self) -> None:
        """End it."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()
