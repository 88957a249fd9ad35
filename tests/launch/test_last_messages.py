"""What ranks had sent before they were ended is heard before their job's error is."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any

import pytest

from evenflow.errors import RankLostError
from evenflow.launch.group import Group, RunningRank


@dataclass
class Process:
    """One that is dead from the start, or one whose last message is on its way until it is killed."""

    pid: int
    dies: bool
    status: int | None = None
    host: str = "here"
    where: str = ""
    lost: bool = False
    closed: bool = False
    stopped: bool = False
    blocked: bool = False
    pulse: Any = None
    sent: list[dict[str, Any]] = field(default_factory=list)
    pair: Any = field(default_factory=socket.socketpair)

    def fileno(self) -> int:
        return self.pair[0].fileno()

    def waiting(self) -> list[dict[str, Any]]:
        found, self.sent = self.sent, []
        self.closed = self.dies
        return found

    def poll(self, wait_s: float) -> bool:
        self.status = -9 if self.dies else self.status
        return self.status is not None

    def kill(self) -> None:
        if self.status is None:
            self.status = -9
            self.sent.append({"kind": "step", "step": 6})

    def close(self) -> None:
        for end in self.pair:
            end.close()


def test_they_are_passed_on_and_then_the_error_is_raised() -> None:
    group = Group("test", [RunningRank(number, Process(100 + number, number == 1)) for number in range(2)])
    heard: list[tuple[int, dict[str, Any]]] = []
    with pytest.raises(RankLostError, match=r"rank 1 \(process 101\) was killed by SIGKILL"):
        heard.extend(item for item in group.messages(0.01) if item is not None)
    assert heard == [(0, {"kind": "step", "step": 6})]
