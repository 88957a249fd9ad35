"""One line between two processes of a job: JSON messages, one a line, both ways over a socket."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

Message = dict[str, Any]
MOST_RANKS = 64  # that one job may have on one machine: each needs a socket in one request


class Channel:
    """Sends and receives messages; the other end's death reads as `closed`."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.closed = False
        self._unread = b""

    def fileno(self) -> int:
        """The socket's descriptor, for selectors."""
        return self.connection.fileno()

    def send(self, message: Message) -> None:
        """Send one message; a closed other end is not an error here, its reader will notice."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def waiting(self) -> list[Message]:
        """All messages that have come, without waiting for more."""
        while not self.closed:
            try:
                data = self.connection.recv(1 << 20, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:  # reset, or over a network: timed out, no route
                data = b""
            self.closed = not data
            self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Hang up."""
        self.connection.close()
