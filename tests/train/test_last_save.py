"""The last save begins when every rank has written the one before, and ranks ask each other about it in short turns."""

from __future__ import annotations

from typing import Any

import torch

from evenflow.train import ranks


class Host:
    """One other rank, whose disk is slower by some turns."""

    def __init__(self, busy_turns: int) -> None:
        self.busy_turns = busy_turns
        self.asked = 0

    def sum(self, values: torch.Tensor) -> None:
        self.asked += 1
        values += float(self.asked <= self.busy_turns)


class Saver:
    """A save under way for some turns; `save_last` would wait for it without limit."""

    def __init__(self, busy_turns: int, host: Host) -> None:
        self.left = busy_turns
        self.host = host
        self.began = -1

    def idle(self, wait_s: float) -> bool:
        assert wait_s <= 5.0  # far less than an exchange may take
        self.left -= 1
        return self.left < 0

    def save_last(self, step: int) -> list[dict[str, Any]]:
        assert self.left < 0, "this would wait in save_last, and the others for it in their exchange"
        self.began = self.host.asked
        return [{"kind": "saved", "step": step}]


class Channel:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


def test_all_wait_for_the_slowest_disk() -> None:
    for own, other in ((3, 0), (0, 4), (2, 2), (0, 0)):
        host, channel = Host(other), Channel()
        saver = Saver(own, host)
        ranks._save_last(channel, host, saver, 7)  # type: ignore[arg-type]
        assert saver.began == max(own, other) + 1
        assert channel.sent == [{"kind": "saved", "step": 7}]
