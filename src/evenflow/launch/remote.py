"""A torchrun worker on another process, as the leading one sees it: its line and its rank's process.

What is said over the line, besides what the rank itself says (`said`, `tell`):

    to the worker     welcome: to this start; start: fork your rank; kill: end it; look: do you see these files;
                      bye: leave
    to the leader     hello; started; exited; looked; signal: somebody wants the run to stop
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable

from evenflow.errors import WorkerLostError
from evenflow.launch.channel import Channel, Message

_ANSWER_S = 60.0  # its fork server may still be importing, several of them on one host at once


class Worker:
    """Another torchrun worker.

    Attributes:
        rank: its rank.
        host: its host's name.
        facts: what it said of its host.
        address: of its host.
        where: its host, for messages.
        process: its rank's process in the current job, if one is running.
    """

    def __init__(self, line: Channel, hello: Message, address: str, heard: Callable[[int], None]) -> None:
        self.rank: int = hello["rank"]
        self.host: str = hello["host"]
        self.facts = hello
        self.address = address
        self.where = f"{self.host} ({address})"
        self.process: RemoteProcess | None = None
        self._answers: list[Message] = []
        self._line = line
        self._heard = heard

    @property
    def who(self) -> str:
        """Its rank and host, for messages."""
        return f"rank {self.rank} on {self.where}"

    @property
    def lost(self) -> bool:
        """Whether its line has ended."""
        return self._line.closed

    def fileno(self) -> int:
        """Its line's descriptor."""
        return self._line.fileno()

    def send(self, message: Message) -> None:
        """Send it a message."""
        self._line.send(message)

    def read(self) -> None:
        """Take in all that has come."""
        for message in self._line.waiting():
            match message["kind"]:
                case "said":
                    if self.process is not None:
                        self.process.unread.append(message["message"])
                case "started":
                    if self.process is not None:
                        self.process.pid = message["pid"]
                case "exited":
                    if self.process is not None:
                        self.process.exited(message["status"])
                case "signal":
                    self._heard(message["number"])
                case _:
                    self._answers.append(message)

    def answer(self, message: Message) -> Message:
        """Ask it something and wait for the answer.

        Raises:
            WorkerLostError: it is gone, or did not answer in time.
        """
        self.send(message)
        self._await(lambda: bool(self._answers), f"asked to {message['kind']}")
        return self._answers.pop()

    def start(self, target: str, payload: Message, threads: int) -> RemoteProcess:
        """Have it fork its rank; returns before it has."""
        self.process = RemoteProcess(self)
        self.send({"kind": "start", "target": target, "payload": payload, "threads": threads})
        return self.process

    def await_started(self) -> None:
        """Wait until its rank runs.

        Raises:
            WorkerLostError: it is gone, or did not answer in time.
        """
        self._await(lambda: self.process is not None and self.process.pid > 0, "asked to start its rank")

    def _await(self, reached: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _ANSWER_S
        while not reached():
            select.select([self._line], [], [], 0.1)
            self.read()
            self.check()
            if time.monotonic() > deadline:
                raise WorkerLostError(f"the worker of {self.who} has not answered in {_ANSWER_S:.0f} s: {what}")

    def check(self) -> None:
        """Notice a worker that is gone.

        Raises:
            WorkerLostError: which.
        """
        if self.lost:
            raise WorkerLostError(f"the worker of {self.who} is lost: it, its host or the network to it is gone")

    def close(self) -> None:
        """Hang up."""
        self._line.close()


class RemoteProcess:
    """A rank's process that another worker forked and relays.

    Nobody here sees its heartbeat: on several hosts it is torchrun's agent that watches, and gloo's timeouts.
    """

    pulse = None
    stopped = False
    blocked = False

    def __init__(self, worker: Worker) -> None:
        self.pid = 0
        self.host = worker.host
        self.status: int | None = None
        self.unread: list[Message] = []
        self._worker = worker
        self._ended = False

    @property
    def where(self) -> str:
        """Its host, for messages."""
        return f" on {self._worker.where}"

    @property
    def closed(self) -> bool:
        """Whether it has ended and all it said was read, or its worker is gone."""
        return (self._ended or self._worker.lost) and not self.unread

    @property
    def lost(self) -> bool:
        """Whether its worker is gone and nobody can say what became of it."""
        return self._worker.lost and not self._ended

    def exited(self, status: int | None) -> None:
        """Its worker saw it end."""
        self.status = status
        self._ended = True

    def fileno(self) -> int:
        """What has something to read when it, or its worker, has said something."""
        return self._worker.fileno()

    def send(self, message: Message) -> None:
        """Have the worker send it a message."""
        self._worker.send({"kind": "tell", "message": message})

    def waiting(self) -> list[Message]:
        """All messages that have come from it."""
        self._worker.read()
        found, self.unread = self.unread, []
        return found

    def poll(self, wait_s: float) -> bool:
        """Whether its worker has seen it end, or is gone itself."""
        if not self._ended and not self._worker.lost and wait_s > 0:
            select.select([self._worker], [], [], wait_s)
            self._worker.read()
        return self._ended or self._worker.lost

    def kill(self) -> None:
        """Have the worker end it."""
        if not self._ended:
            self._worker.send({"kind": "kill"})

    def close(self) -> None:
        """Nothing of its own to hang up: the worker's line stays for the next job."""
