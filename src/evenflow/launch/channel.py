"""One line between two processes of a job: JSON messages, one a line, both ways over a socket."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
from array import array
from collections.abc import Iterable
from typing import Any

from evenflow.launch.heartbeat import Heartbeat

Message = dict[str, Any]
MOST_RANKS = 64  # that one job may have on one machine: each needs a socket in one request


def pack(numbers: Iterable[float]) -> str:
    """Many numbers as one text of a message, to the bit: a twentieth of the time that JSON takes for each by itself."""
    return base64.b64encode(array("d", numbers).tobytes()).decode()


def unpack(text: str) -> list[float]:
    """The numbers that `pack` was given, on the same kind of machine."""
    return array("d", base64.b64decode(text)).tolist()


class Channel:
    """Sends and receives messages; the other end's death reads as `closed`.

    Args:
        connection: the socket.
        heartbeat: this process's, where it is a rank's end of the line.
    """

    def __init__(self, connection: socket.socket, heartbeat: Heartbeat | None = None) -> None:
        self.connection = connection
        self.heartbeat = heartbeat or Heartbeat()
        self.closed = False
        self._unread = b""

    def fileno(self) -> int:
        """The socket's descriptor, for selectors."""
        return self.connection.fileno()

    @property
    def has_unread(self) -> bool:
        """Whether `waiting` has something without anything more coming."""
        return b"\n" in self._unread

    def send(self, message: Message) -> None:
        """Send one message; a closed other end is not an error here, its reader will notice."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def doing(self, what: str, timed: bool = False) -> None:
        """Say what this rank does from now on: to a watcher on this host by its heartbeat, to others by a message.

        Args:
            what: words that fit behind "while".
            timed: whether the plan says how long it may take.
        """
        self.heartbeat.phase(what, timed)
        self.send({"kind": "doing", "what": what})

    def waiting(self) -> list[Message]:
        """All messages that have come, without waiting for more."""
        while not self.closed and self._receive(1 << 20):
            pass
        *lines, self._unread = self._unread.split(b"\n")
        return [json.loads(line) for line in lines]

    def first_line(self, most: int) -> bytes | None:
        """The first line that has come, still unread as JSON; None while there is none.

        For callers that nobody vouches for: takes in what one look finds, and what follows the line stays for
        `waiting`.

        Args:
            most: bytes that are held of such a caller.

        Raises:
            ValueError: it has sent so many without ending a line.
        """
        if not self.closed and b"\n" not in self._unread:
            self._receive(most - len(self._unread))
        line, end, rest = self._unread.partition(b"\n")
        if end:
            self._unread = rest
            return line
        if len(line) >= most:
            raise ValueError(f"{most} bytes and no end of a line")
        return None

    def _receive(self, most: int) -> bool:
        """Take in at most so many bytes that have come; whether any had."""
        try:
            data = self.connection.recv(most, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:  # reset, or over a network: timed out, no route
            data = b""
        self.closed = not data
        self._unread += data
        return not self.closed

    def close(self) -> None:
        """Hang up."""
        self.connection.close()
