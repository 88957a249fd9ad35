"""What a forked process does to rehearse: build one rank of a plan, run its program with made-up peers, tell the times.

It is the executor of a run, on the stages of a run; only who it talks to is made up, and what it is fed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenflow.files import load_plan
from evenflow.launch import Channel, pack
from evenflow.models import draw_of, read_config
from evenflow.plan import Coordinates, Plan
from evenflow.program import verify_plan
from evenflow.runtime import (
    CudaMemoryMeter,
    MadeUpTransport,
    MemoryMeter,
    ProcessorClock,
    made_up_mesh,
    memory_meter,
    rank_device,
    saying_what_lacks,
    use_device,
)
from evenflow.train.ranks import assemble
from evenflow.units import format_bytes

_SEED = 0


def run(number: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Rehearse rank `payload["rank"]` of `payload["plan"]`, as one of several processes that all do; send each step.

    Raises:
        FaultError: the device has too little memory for it.
    """
    plan = load_plan(Path(payload["plan"]))
    torch.set_num_threads(plan.threads)
    device = rank_device(number, payload["gpus"])
    use_device(device)
    meter = memory_meter(device)

    def lacks(error: str) -> str:
        planned = format_bytes(plan.ranks[payload["rank"]].peak_bytes)
        held = format_bytes(meter.peak_bytes())
        return f": {error}; rank {payload['rank']} held {held}, the plan expects {planned}"

    with saying_what_lacks(lacks):
        _rehearse(channel, payload, plan, meter, device)


def _rehearse(
    channel: Channel,
    payload: dict[str, Any],
    plan: Plan,
    meter: MemoryMeter | CudaMemoryMeter,
    device: torch.device,
) -> None:
    program = verify_plan(plan)
    process = plan.axes.process(Coordinates(payload["rank"]))
    channel.doing("building its stage")
    tied_ranks = [[plan.stage_rank[stage] for stage in group] for group in plan.tied]
    mesh = made_up_mesh(plan.axes, process, tied_ranks, device)
    executor, _, _, _ = assemble(payload, plan, program, MadeUpTransport(_SEED), mesh, device)
    executor.gauge = meter.held_bytes
    if payload["shares_cores"]:
        executor.clock = ProcessorClock(plan.threads)
    tokens = RandomTokens(payload, plan, device)
    executor.starts_now()
    for step in range(1, payload["steps"] + 1):
        channel.doing(f"in step {step}")
        result = executor.run_step(tokens, predicted=tokens.predicted, draw=draw_of(_SEED, step))
        moments = pack(moment for span in result.spans for moment in span)
        channel.send({"kind": "step", "step": step, "spans": moments, "peak": meter.peak_bytes()})


class RandomTokens:
    """Microbatches of random token ids.

    Args:
        payload: `config`, JSON of the model's.
        plan: says how large they are.
        device: where they go.

    Attributes:
        predicted: the tokens that the whole global batch predicts.
    """

    def __init__(self, payload: dict[str, Any], plan: Plan, device: torch.device) -> None:
        self._vocabulary = int(read_config(payload["config"]).get_text_config().vocab_size)
        self._shape = (plan.micro_batch_size, plan.seq_length)
        self._device = device
        self.predicted = plan.global_batch_size * (plan.seq_length - 1)

    def __call__(self, microbatch: int) -> Tensor:
        """The ids of one microbatch [batch, seq], the same in every step."""
        chance = torch.Generator().manual_seed(microbatch)
        return torch.randint(self._vocabulary, self._shape, generator=chance).to(self._device)
