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

    def __init__(self, busy_turns: int, host: Host, channel: Channel) -> None:
        self.left = busy_turns
        self.host = host
        self.began = -1
        self.channel = channel
        self.told = 0  # when a save begins

    def idle(self, wait_s: float) -> bool:
        assert wait_s <= 5.0  # far less than an exchange may take
        self.left -= 1
        return self.left < 0

    def finish(self) -> list[dict[str, Any]]:
        return [{"kind": "saved", "step": 6}]

    def start(self, step: int) -> list[dict[str, Any]]:
        self.told = len(self.channel.sent)
        return []

    def save_last(self, step: int) -> list[dict[str, Any]]:
        assert self.left < 0, "this would wait in save_last, and the others for it in their exchange"
        self.began = self.host.asked
        self.told = len(self.channel.sent)
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
        saver = Saver(own, host, channel)
        ranks._save_last(channel, host, saver, 7)  # type: ignore[arg-type]
        assert saver.began == max(own, other) + 1
        assert saver.told == 1  # of the save before: a fault in this one must not keep it back
        assert channel.sent == [{"kind": "saved", "step": 6}, {"kind": "saved", "step": 7}]


def test_the_save_before_is_told_of_before_its_copy_is_written_over() -> None:
    for busy_turns in (0, 1):
        host, channel = Host(0), Channel()
        saver = Saver(busy_turns, host, channel)
        ranks._save(channel, host, saver, 9)  # type: ignore[arg-type]
        assert saver.told == (0 if busy_turns else 1)
        assert channel.sent == [{"kind": "skipped", "step": 9} if busy_turns else {"kind": "saved", "step": 6}]
