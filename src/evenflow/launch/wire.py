"""TCP lines between workers on several hosts: bound to one address, and found dead when the network goes quiet."""

from __future__ import annotations

import socket

from evenflow.launch.channel import Channel

# A line that nothing comes over is asked after 10 s, then every 5 s, and taken for dead when 4 questions stay
# unanswered. The kernels ask and answer, so a busy process is never taken for a dead one.
DEAD_AFTER_S = 30
_IDLE_S, _EVERY_S, _QUESTIONS = 10, 5, 4
_WAITING = 128  # workers that may knock at once


def listen(address: str) -> socket.socket:
    """A listening socket on a free port of one of this host's addresses."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen(_WAITING)
    return listener


def dial(address: str, port: int, from_address: str, seconds: float) -> Channel:
    """A line to a listening worker.

    Raises:
        OSError: nobody answers there.
    """
    connection = socket.create_connection((address, port), seconds, (from_address, 0))
    connection.settimeout(None)
    return Channel(watched(connection))


def watched(connection: socket.socket) -> socket.socket:
    """The connection, with settings by which both ends notice that the other is gone without a word."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _EVERY_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _QUESTIONS)
    # What was sent and never acknowledged: without it the kernel tries again for a quarter of an hour.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * DEAD_AFTER_S)
    return connection
