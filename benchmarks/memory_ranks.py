"""What each forked rank of the memory benchmark does: one contestant alone in fresh processes, and its peak."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile

import benchmarks.torch_peer  # noqa: F401  # every contestant has it loaded before the first mark
from benchmarks.contestants import CONTESTANTS
from benchmarks.linear_job import RANKS, EvenflowLinear, LinearJob, TorchLinear, step_input
from benchmarks.peer_ranks import work_of
from evenflow.launch import Channel
from evenflow.runtime import MemoryMeter, Optimizer, connect

_LINEAR: dict[str, type[EvenflowLinear] | type[TorchLinear]] = {"evenflow": EvenflowLinear, "torch": TorchLinear}


class _Trains(Protocol):
    optimizer: Optimizer

    def run_step(self) -> float | None: ...


def run_peer(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """The peers' job."""
    work = work_of(rank, payload)
    _measure(channel, payload, lambda: CONTESTANTS[payload["contestant"]](work))
    work.transport.close()


def run_linear(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """The memory job."""
    sys.stdout = sys.stderr
    torch.set_num_threads(1)
    transport = connect(rank, RANKS, Path(payload["rendezvous"]), 300)
    job = LinearJob(**payload["job"])
    rows = step_input(job)
    _measure(channel, payload, lambda: _LINEAR[payload["contestant"]](job, rank, rows, transport))
    transport.close()


def _measure(channel: Channel, payload: dict[str, Any], build: Callable[[], Any]) -> None:
    """Send the peak of the process, or of its tensors, above what was held before the model was built."""
    before = _held_bytes()
    meter = MemoryMeter()
    trains: _Trains = build()
    _fill_optimizer(trains.optimizer)
    if payload["tensors"]:
        held = _held_bytes() - before
        peak = held + max(_passing_peak(trains.run_step) for _ in range(payload["steps"]))
    else:
        for _ in range(payload["steps"]):
            trains.run_step()
        peak = meter.peak_bytes()
    channel.send({"kind": "result", "peak_bytes": peak})


def _fill_optimizer(optimizer: Optimizer) -> None:
    """Have AdamW's moments in place, as from the second step on, so that one step shows the peak of all later ones."""
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(torch.zeros_like(optimizer.gradient_norms()), 0.0)


def _held_bytes() -> int:
    """Bytes of all tensors that Python can reach, each storage once."""
    gc.collect()
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _passing_peak(run_step: Callable[[], float | None]) -> int:
    """The most tensor bytes that were allocated and not yet freed within a step, counted at the allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run_step()
    kineto = profiled.profiler.kineto_results
    events = [(event.start_ns(), event.nbytes()) for event in kineto.events() if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(events, key=lambda event: event[0]):
        held += change
        peak = max(peak, held)
    return peak
