"""Nothing grows with microbatches or steps: tensor bytes are counted exactly, on one rank among made-up peers."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import pytest
import torch

from evenflow.execute import Executor
from evenflow.program import (
    Program,
    ReleaseBackward,
    ReleaseForward,
    build_program,
    evaluation_program,
    place,
    receive_buffers,
)
from evenflow.runtime import LiveBytes, MadeUpTransport
from tests.conftest import TINY_LLAMA
from tests.execute.alone import SHAPE, is_empty, make_executor
from tests.parity.ranks import program_of, tokens_of
from tests.parity.test_whole import place_stages

# What a rank holds by many microbatches it holds by a few more than there are ranks: CI takes those.
MANY = pytest.mark.parametrize("many", [24, pytest.param(128, marks=pytest.mark.full)])
SMALL = {**TINY_LLAMA, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}


def step(executor: Executor, number: int = 0, **options: object) -> None:
    batch, seq = options.get("shape") or SHAPE
    executor.run_step(lambda k: tokens_of(number, k, batch, seq, SMALL["vocab_size"]), 1e-3, **options)


def bytes_of(program: Program, rank: int, steps: int = 2) -> tuple[int, int, int]:
    """The most tensor bytes in a step, those left after it, and the buffers it receives into."""
    torch.set_num_threads(1)
    executor = make_executor(program, rank, MadeUpTransport(), SMALL)
    with LiveBytes() as live:
        step(executor)  # makes buffers and the optimizer's state
        assert is_empty(executor)
        left = live.now
        for number in range(1, steps):
            live.mark()
            step(executor, number)
            assert is_empty(executor)
            assert live.now == left, f"step {number} left {live.now - left} bytes more"
    assert executor.pool.made <= sum(receive_buffers(program, rank).values())
    return live.peak, live.now, executor.pool.made


def test_the_count_sees_what_autograd_keeps_and_what_is_freed() -> None:
    with LiveBytes() as live:
        weight = torch.ones(4, 8, requires_grad=True)
        output = (weight * 2).exp().sum()
        assert live.now == 4 * (32 + 32 + 1)  # weight, what exp keeps (its result), the sum; weight * 2 is gone
        output.backward()
        del output
        assert live.now == 4 * (32 + 32)  # weight and its gradient
        assert live.peak > live.now


@MANY
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb-h1", "zb-h2", "zb-v"])
@pytest.mark.parametrize("rank", [0, 1])
def test_bytes_are_the_same_for_8_and_for_many_microbatches(schedule: str, rank: int, many: int) -> None:
    few, more = (bytes_of(build_program(schedule, 2, count), rank) for count in (8, many))
    assert more == few


@MANY
def test_a_middle_rank_of_four_is_flat_too(many: int) -> None:
    few, more = (bytes_of(build_program("1f1b", 4, count), 2) for count in (8, many))
    assert more == few


@pytest.mark.parametrize("schedule", ["1f1b", "zb-v"])
def test_what_is_sent_is_freed_by_its_release(schedule: str) -> None:
    """A name that outlives its action would keep a tensor for one action more, and nobody would see it but the peak."""
    watch = _Watch()
    executor = make_executor(build_program(schedule, 2, 4), 0, watch, SMALL, clock=watch)
    step(executor)
    assert len(watch.released) == sum(isinstance(own, ReleaseForward | ReleaseBackward) for own in executor.actions)


class _Watch(MadeUpTransport):
    """A transport that notes whose sends are complete, and a clock at each of whose marks those tensors are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.released: list[weakref.ref[torch.Tensor]] = []
        self.releasing: list[weakref.ref[torch.Tensor]] = []

    def send(self, tensor: torch.Tensor, rank: int, tag: int) -> _Sent:
        return _Sent(self, weakref.ref(tensor))

    def mark(self) -> None:
        self.released += self.releasing
        self.releasing.clear()
        assert all(own() is None for own in self.released)

    def read(self) -> list[float]:
        return []


@dataclass
class _Sent:
    watch: _Watch
    tensor: weakref.ref[torch.Tensor]

    def wait(self) -> None:
        assert self.tensor() is not None, "freed before it was sent"
        self.watch.releasing.append(self.tensor)


def test_gpipe_grows_by_nature() -> None:
    few, many = (bytes_of(build_program("gpipe", 2, count), 0) for count in (8, 16))
    assert many[0] > few[0]


@MANY
@pytest.mark.parametrize("placement", ["loop", "v"])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_evaluation_is_flat_and_keeps_nothing(placement: str, rank: int, many: int) -> None:
    where = place(placement, 2, 4)
    few, more = (bytes_of(evaluation_program(where, count), rank) for count in (8, many))
    assert more == few
    trained, _, _ = bytes_of(program_of("gpipe", where, 8), rank)
    assert few[0] < trained / 3


@pytest.mark.parametrize("steps", [12, pytest.param(50, marks=pytest.mark.full)])
@pytest.mark.parametrize("schedule", ["1f1b", "zb-v"])
def test_steps_leave_nothing(schedule: str, steps: int) -> None:
    program = program_of(schedule, place_stages(schedule, "own", 2), 4)
    for rank in (0, 1):
        bytes_of(program, rank, steps=steps)  # holds every step against the first


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb-h1", "zb-v"])
def test_two_thousand_steps_leave_nothing(schedule: str) -> None:
    program = program_of(schedule, place_stages(schedule, "own", 2), 4)
    bytes_of(program, 1, steps=2000)
