"""The fork server: a process that has imported torch and transformers once and forks ranks in a tenth of a second.

Run as `python -m evenflow.launch.server DESCRIPTOR MODULE...`. It has no threads and no process groups, so
its children are safe to fork; it never runs work itself. It speaks over the socket that it was given:

    to it      a request: 8 bytes of length with one socket for each rank attached, then that much JSON
               `{"target": "module:function", "ranks": [0, 1], "cores": [[0], [1]] or null, "payload": {...}}`
    from it    JSON lines: `{"ready": true}`, `{"started": [pid, ...]}`, `{"exited": pid, "status": -9}`

When the other end closes, for whatever reason, it kills all its children and leaves.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from evenflow.errors import EvenflowError
from evenflow.launch.channel import MOST_RANKS, Channel
from evenflow.launch.heartbeat import Heartbeat

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def main() -> None:
    """Import, say so, and serve until the other end closes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole job, they are the command line process's to hear
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    # What was imported stays: a rank that looked it through for garbage would stand still for a fifth of a second, and
    # write to all of the memory that it shares with the others.
    gc.freeze()
    wake, woken = socket.socketpair()
    for end in (wake, woken):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    children: set[int] = set()
    try:
        _say(connection, {"ready": True})
        while True:
            readable, _, _ = select.select([connection, wake], [], [])
            if wake in readable:
                wake.recv(4096)
            _report_exits(connection, children)
            if connection in readable:
                request = _receive(connection)
                if request is None:
                    return
                started = _fork_ranks(connection, *request)
                children.update(started)
                _say(connection, {"started": started})
    except OSError:
        return  # the other end is gone: nobody is left to be told
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def _say(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _report_exits(connection: socket.socket, children: set[int]) -> None:
    for child in sorted(children):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            children.discard(pid)
            _say(connection, {"exited": pid, "status": os.waitstatus_to_exitcode(status)})


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    header, descriptors, _, _ = socket.recv_fds(connection, 8, MOST_RANKS + 1)
    if len(header) < 8:
        return None
    length = int.from_bytes(header, "little")
    body = bytearray()
    while len(body) < length:
        part = connection.recv(length - len(body))
        if not part:
            return None
        body += part
    return json.loads(body), list(descriptors)


def _fork_ranks(connection: socket.socket, request: dict[str, Any], descriptors: list[int]) -> list[int]:
    sys.stdout.flush()
    sys.stderr.flush()
    server = os.getpid()
    page, *lines = descriptors
    started: list[int] = []
    for index, descriptor in enumerate(lines):
        child = os.fork()
        if child == 0:
            _become_rank(index, server, request, page, descriptor, (connection.fileno(), *lines))
        started.append(child)
    for descriptor in descriptors:
        os.close(descriptor)
    return started


def _become_rank(
    index: int, server: int, request: dict[str, Any], page: int, line: int, inherited: Sequence[int]
) -> None:
    """Run the target and leave, never returning to the server's loop, which would end the other ranks."""
    status = 1
    channel: Channel | None = None
    try:
        channel = Channel(socket.socket(fileno=line))
        for other in inherited:
            if other != line:
                os.close(other)
        channel.heartbeat = Heartbeat(page, index)
        os.close(page)
        channel.heartbeat.start()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _die_with(server)
        cores = request["cores"]
        if cores is not None:
            os.sched_setaffinity(0, cores[index])
        module, _, function = request["target"].partition(":")
        getattr(importlib.import_module(module), function)(request["ranks"][index], channel, request["payload"])
        channel.send({"kind": "done"})
        status = 0
    except BaseException as error:
        if channel is not None:
            channel.send(
                {
                    "kind": "error",
                    "type": type(error).__name__,
                    "text": str(error) or type(error).__name__,
                    "on_purpose": isinstance(error, EvenflowError),
                    "trace": traceback.format_exc(),
                }
            )
        status = getattr(error, "exit_code", 1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _die_with(server: int) -> None:
    """Ask the kernel to kill this rank when the server dies (Linux), so that none is ever left behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != server:  # it died before the kernel was asked
            os._exit(1)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking a torch apart that has only been imported takes longer than all the rest of an ending
