"""Starts the fork server, asks it for ranks, and makes sure that nothing outlives this process."""

from __future__ import annotations

import atexit
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from evenflow.errors import InputError, RankLostError
from evenflow.launch.allocator import allocator_environment
from evenflow.launch.channel import MOST_RANKS, Channel
from evenflow.launch.group import Group, RunningRank
from evenflow.launch.heartbeat import Page
from evenflow.launch.process import LocalProcess

PRELOAD = ("torch", "torch.distributed", "evenflow.models", "evenflow.execute", "evenflow.measure")


class ForkServer:
    """A running fork server; `close` ends it and all its ranks."""

    def __init__(self, preload: Sequence[str] = PRELOAD) -> None:
        ours, theirs = socket.socketpair()
        self._connection = ours
        self._unread = b""
        self._exits: dict[int, int] = {}
        self._ready = False
        self._started: list[list[int]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "evenflow.launch.server", str(theirs.fileno()), *preload],
            pass_fds=[theirs.fileno()],
            env={
                **os.environ,
                **allocator_environment(os.environ),
                # Else whoever asks whether there is a GPU starts CUDA, and no process forked after that can use it.
                "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
                "OPENBLAS_NUM_THREADS": "1",  # numpy's, whose threads would be there before the fork
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is for us alone; we tell the ranks
        )
        theirs.close()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def start(
        self,
        name: str,
        target: str,
        ranks: int,
        payload: dict[str, Any],
        cores: Sequence[Sequence[int]] | None = None,
    ) -> Group:
        """Fork `ranks` processes that each call `target(rank, channel, payload)`.

        Args:
            name: what the job is, for messages.
            target: `module:function`.
            ranks: how many.
            payload: JSON for every rank.
            cores: the cores that each rank is pinned to; None leaves them to the system.

        Raises:
            InputError: more ranks than one server can watch.
            RankLostError: the server is gone.
        """
        processes = self.fork(target, range(ranks), payload, cores)
        return Group(name, [RunningRank(rank, process) for rank, process in enumerate(processes)])

    def fork(
        self, target: str, ranks: Sequence[int], payload: dict[str, Any], cores: Sequence[Sequence[int]] | None = None
    ) -> list[LocalProcess]:
        """Fork a process for each of `ranks`, which need not be all ranks of the job; else as `start`."""
        if len(ranks) > MOST_RANKS:
            raise InputError(f"{len(ranks)} processes on one machine are too many; {MOST_RANKS} would be the most")
        while not self._ready:
            self._listen(None)
        pairs = [socket.socketpair() for _ in ranks]
        body = json.dumps({"target": target, "ranks": [*ranks], "cores": cores, "payload": payload}).encode()
        page = Page(len(ranks))
        descriptors = [page.descriptor, *(theirs.fileno() for _, theirs in pairs)]
        socket.send_fds(self._connection, [len(body).to_bytes(8, "little")], descriptors)
        page.shared()
        self._connection.sendall(body)
        for _, theirs in pairs:
            theirs.close()
        while not self._started:
            self._listen(None)
        return [
            LocalProcess(pid, Channel(ours), self.exits, page, index)
            for index, (pid, (ours, _)) in enumerate(zip(self._started.pop(), pairs, strict=True))
        ]

    def exits(self, wait_s: float) -> dict[int, int]:
        """Exit statuses by process id of all ranks that have ended so far (negative: the signal)."""
        self._listen(wait_s)
        return self._exits

    def close(self) -> None:
        """End the server and every rank it has; waits until it is gone."""
        self._connection.close()
        if not self._ready:  # it is still importing and has no ranks to end
            self._process.kill()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self, wait_s: float | None) -> None:
        readable, _, _ = select.select([self._connection], [], [], wait_s)
        if not readable:
            return
        data = self._connection.recv(1 << 16)
        if not data:
            raise RankLostError("the process that starts ranks is gone, and all ranks with it")
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "exited" in message:
                self._exits[message["exited"]] = message["status"]
            elif "started" in message:
                self._started.append(message["started"])
            else:
                self._ready = True


_shared: ForkServer | None = None


def shared_server() -> ForkServer:
    """This process's fork server, started at first use and ended with the process."""
    global _shared
    if _shared is None or not _shared.alive:
        _shared = ForkServer()
        atexit.register(_shared.close)
    return _shared
