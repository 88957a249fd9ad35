"""The other torchrun workers' side: fork one rank when told to, and relay between it and the leading worker."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable

from evenflow.errors import FaultError
from evenflow.launch.channel import Channel, Message
from evenflow.launch.client import ForkServer
from evenflow.launch.hosts import describe_host, fork_own, look, proof
from evenflow.launch.process import LocalProcess
from evenflow.launch.torchrun import Torchrun

_TURN_S = 0.2  # between two looks for signals and for a rank that ended
_WELCOME_S = 10.0  # the leading worker answers as soon as it hears
_WELCOME_BYTES = 1024


class Agent:
    """One worker's rank on behalf of the leading worker.

    Args:
        torchrun: what this worker was told.
        line: to the leading worker.
        secret: what they prove to each other with that they are of one run; it does not go over the line.
        server: forks the rank.
    """

    def __init__(self, torchrun: Torchrun, line: Channel, secret: str, server: ForkServer) -> None:
        self._torchrun = torchrun
        self._line = line
        self._server = server
        self._rank: LocalProcess | None = None
        self._welcome: Message = {"kind": "welcome", "proof": proof(secret, "leader")}
        own = {"proof": proof(secret, "worker"), "rank": torchrun.rank, **describe_host(torchrun)}
        line.send({"kind": "hello", **own})

    def is_welcome(self, tick: Callable[[], None]) -> bool:
        """Wait for the answer to the hello: whether who answers is the leading worker of this very start.

        An address can outlive who was there, and somebody else may be found at it, who need not answer.

        Args:
            tick: called now and then; what it raises ends the wait.
        """
        deadline = time.monotonic() + _WELCOME_S
        while not self._line.closed and time.monotonic() < deadline:
            tick()
            select.select([self._line.fileno()], [], [], _TURN_S)
            try:
                said = self._line.first_line(_WELCOME_BYTES)
                if said is not None and json.loads(said) == self._welcome:
                    return True
            except (ValueError, RecursionError):  # it does not speak as workers do
                break
            if said is not None:
                break
        self._line.close()
        return False

    def serve(self, signal_number: Callable[[], int | None]) -> int:
        """Do as told until told to leave; returns the exit code that the leading worker leaves with.

        Args:
            signal_number: the signal that asked this worker to stop, if one has: the run then saves and stops. What
                it raises ends this worker at once.

        Raises:
            FaultError: the leading worker is gone.
        """
        told = False
        try:
            while True:
                number = signal_number()
                if number is not None and not told:
                    self._line.send({"kind": "signal", "number": number})
                    told = True
                talking = [] if self._rank is None or self._rank.closed else [self._rank.fileno()]
                select.select([self._line.fileno(), *talking], [], [], 0.0 if self._line.has_unread else _TURN_S)
                for message in self._line.waiting():
                    if message["kind"] == "bye":
                        return int(message["code"])
                    self._obey(message)
                if self._line.closed:
                    raise FaultError(
                        f"rank {self._torchrun.rank} on {socket.gethostname()} lost rank 0, the process that leads the "
                        "run: it, its host or the network to it is gone"
                    )
                self._relay()
        finally:
            if self._rank is not None:
                self._rank.kill()
            self._line.close()

    def _obey(self, message: Message) -> None:
        match message["kind"]:
            case "tell" if self._rank is not None:
                self._rank.send(message["message"])
            case "kill" if self._rank is not None:
                self._rank.kill()
            case "look":
                self._line.send(look(message, self._torchrun.rank))
            case "start":
                self._rank = fork_own(
                    self._server, self._torchrun, message["target"], message["payload"], message["threads"]
                )
                self._line.send({"kind": "started", "pid": self._rank.pid})

    def _relay(self) -> None:
        """Pass on what the rank says, then that it has ended."""
        if self._rank is None:
            return
        for message in self._rank.waiting():
            self._line.send({"kind": "said", "message": message})
        if self._rank.closed and self._rank.poll(0.05):
            self._line.send({"kind": "exited", "status": self._rank.status})
            self._rank.close()
            self._rank = None
