"""Threads that stand for processes draw what those would, though they share torch's generator."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from evenflow.runtime import MeetingInTurns, ThreadTensorGroup


def draws(seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.rand(3) for _ in range(4)]


def test_each_thread_finds_the_generator_as_it_left_it() -> None:
    meeting = MeetingInTurns(3)

    def run(index: int) -> list[Tensor]:
        group = ThreadTensorGroup(meeting, index)
        with meeting.turn():
            torch.manual_seed(index)
            found = []
            for _ in range(4):
                total = torch.ones(1)
                group.add(total)
                assert total.item() == 3
                found.append(torch.rand(3))
            return found

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, range(3)))
    for index, own in enumerate(found):
        assert all(torch.equal(one, other) for one, other in zip(own, draws(index), strict=True))
