"""What each forked rank of the overhead benchmark does: steps that record and steps that do not, in turn."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from evenflow.execute import Executor, StepResult
from evenflow.launch import Channel, pack
from evenflow.models import Microbatch, Stage, build_stage, draw_weights
from evenflow.program import Norm, Program, Step, WeightBackward, build_program, default_stage_rank, stages_of, verify
from evenflow.program.actions import Backward, Forward, InputBackward
from evenflow.runtime import HostClock, MemoryMeter, Optimizer, OptimizerSettings, Transfer, Transport, connect
from evenflow.train.ranks import MEMORY_EVERY

_COMPUTE = (Forward, Backward, InputBackward, WeightBackward, Norm, Step)
SHAPE = (1, 64)
_WIDTH = 128
_VOCABULARY = 256
WARM_UP_ROUNDS = 2
_TRIALS = 20


class TimedTransport:
    """Adds up the seconds spent in another transport: posting messages, and waiting for them or for a sum."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.posting_s = 0.0
        self.waiting_s = 0.0

    def send(self, tensor: Tensor, rank: int, tag: int) -> Transfer:
        """Start sending."""
        begin = time.perf_counter()
        transfer = _TimedTransfer(self, self.transport.send(tensor, rank, tag))
        self.posting_s += time.perf_counter() - begin
        return transfer

    def receive(self, buffer: Tensor, rank: int, tag: int) -> Transfer:
        """Start receiving."""
        begin = time.perf_counter()
        transfer = _TimedTransfer(self, self.transport.receive(buffer, rank, tag))
        self.posting_s += time.perf_counter() - begin
        return transfer

    def sum(self, tensor: Tensor) -> None:
        """Sum over all ranks."""
        begin = time.perf_counter()
        self.transport.sum(tensor)
        self.waiting_s += time.perf_counter() - begin

    def close(self) -> None:
        """Part from the others."""
        self.transport.close()


class _TimedTransfer:
    def __init__(self, owner: TimedTransport, transfer: Transfer) -> None:
        self.owner = owner
        self.transfer = transfer

    def wait(self) -> None:
        begin = time.perf_counter()
        self.transfer.wait()
        self.owner.waiting_s += time.perf_counter() - begin


class TimedClock:
    """The executor's recorder, which also adds up the seconds that it takes itself (and those of adding them up).

    Args:
        meter: of the memory that is recorded too.
    """

    def __init__(self, meter: MemoryMeter) -> None:
        self.clock = HostClock()
        self.meter = meter
        self.taken_s = 0.0
        self.memory_s = 0.0
        self.report_s = 0.0

    def mark(self) -> None:
        """Note the time."""
        begin = time.perf_counter()
        self.clock.mark()
        self.taken_s += time.perf_counter() - begin

    def read(self) -> list[float]:
        """The times noted since the last reading."""
        begin = time.perf_counter()
        moments = self.clock.read()
        self.taken_s += time.perf_counter() - begin
        return moments

    def held_bytes(self) -> int:
        """The memory held now."""
        begin = time.perf_counter()
        held = self.meter.held_bytes()
        self.memory_s += time.perf_counter() - begin
        return held

    def report(self, result: StepResult, channel: Channel) -> None:
        """Tell of a step as a training rank does."""
        begin = time.perf_counter()
        spans = pack(moment for span in result.spans for moment in span)
        told = {"kind": "step", "spans": spans, "memory": list(result.memory), "peak": self.meter.peak_bytes()}
        channel.send(told)
        self.report_s += time.perf_counter() - begin


class NoClock:
    """A recorder that is off."""

    def mark(self) -> None:
        """Note nothing."""

    def read(self) -> list[float]:
        """Nothing was noted."""
        return []


def run(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Time `payload["rounds"]` rounds of both kinds of step."""
    torch.set_num_threads(1)
    ranks = 2
    stage_rank = default_stage_rank(payload["schedule"], ranks)
    program = build_program(payload["schedule"], stage_rank, payload["microbatches"])
    verify(program)
    transport = TimedTransport(connect(rank, ranks, Path(payload["rendezvous"]), 300))
    blocks = choose_blocks(transport, payload["microbatch_s"] * ranks / program.stages)
    executor = make_executor(program, rank, blocks, transport)
    executor.heartbeat = channel.heartbeat
    meter = MemoryMeter()
    recorded: list[dict[str, float]] = []
    unrecorded: list[float] = []
    for round_number in range(payload["rounds"] + WARM_UP_ROUNDS):
        for records in (True, False) if round_number % 2 else (False, True):
            parts = _step(executor, transport, TimedClock(meter) if records else None, channel)
            if round_number < WARM_UP_ROUNDS:
                continue
            if records:
                recorded.append(parts)
            else:
                unrecorded.append(parts["wall"])
    actions = len(executor.actions)
    channel.send(
        {"kind": "result", "recorded": recorded, "unrecorded": unrecorded, "blocks": blocks, "actions": actions}
    )
    transport.close()


def _step(
    executor: Executor, transport: TimedTransport, clock: TimedClock | None, channel: Channel
) -> dict[str, float]:
    """One step taken apart; one that records tells of itself too, as a training rank does."""
    executor.clock = clock or NoClock()
    executor.gauge = clock.held_bytes if clock else None
    batch = Microbatch(torch.zeros(SHAPE, dtype=torch.int64))
    predicted = batch.predicted * executor.program.microbatches  # known, as a training rank knows it
    transport.transport.sum(torch.zeros(1))
    transport.posting_s = transport.waiting_s = 0.0
    begin = time.perf_counter()
    result = executor.run_step(lambda _: batch, 1e-4, predicted=predicted)
    if clock:
        clock.report(result, channel)
    wall = time.perf_counter() - begin
    compute = sum(
        end - start
        for (start, end), action in zip(result.spans, executor.actions, strict=False)
        if isinstance(action, _COMPUTE)
    )
    overhead = wall - compute - transport.waiting_s
    return {
        "wall": wall,
        "compute": compute,
        "waiting": transport.waiting_s,
        "posting": transport.posting_s,
        "overhead": overhead,
        "loop": overhead - transport.posting_s - (clock.taken_s + clock.memory_s + clock.report_s if clock else 0.0),
        "marks": (clock.taken_s + clock.memory_s / MEMORY_EVERY) if clock else 0.0,
        "report": clock.report_s if clock else 0.0,
    }


def choose_blocks(transport: Transport, stage_s: float) -> int:
    """How many blocks a stage needs for a microbatch to take so long, by both ranks' timing of one block."""
    stage = _build(1, range(1, 2))
    hidden = torch.zeros(*SHAPE, _WIDTH, requires_grad=True)
    times = []
    for _ in range(_TRIALS):
        begin = time.perf_counter()
        stage(hidden).sum().backward()
        times.append(time.perf_counter() - begin)
    total = torch.tensor([median(times[_TRIALS // 2 :])], dtype=torch.float64)
    transport.sum(total)
    return max(round(stage_s / (float(total) / 2)), 1)


def make_executor(program: Program, rank: int, blocks: int, transport: Transport) -> Executor:
    layers = blocks * program.stages
    stages = {}
    for number in stages_of(program.stage_rank, rank):
        first = 1 + number * blocks - (number == 0)
        end = 1 + (number + 1) * blocks + (number == program.stages - 1)
        stages[number] = _build(layers, range(first, end))
    parameters = {name: own for stage in stages.values() for name, own in stage.named_model_parameters().items()}
    names = next(iter(stages.values())).anatomy.parameters
    optimizer = Optimizer(parameters, names, OptimizerSettings())
    return Executor(program, rank, stages, transport, optimizer, (*SHAPE, _WIDTH))


def _build(layers: int, own: range) -> Stage:
    config: PretrainedConfig = AutoConfig.for_model(
        "llama",
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_hidden_layers=layers,
        vocab_size=_VOCABULARY,
        max_position_embeddings=SHAPE[1],
        tie_word_embeddings=False,
    )
    stage = build_stage(config, own)
    draw_weights(stage, 1)
    return stage
