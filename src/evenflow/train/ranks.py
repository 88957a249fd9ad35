"""What each forked rank does to train: build its stage, run the program step after step, write its shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evenflow.errors import FaultError, RankError, first_line
from evenflow.execute import Executor
from evenflow.files import load_plan
from evenflow.launch import Channel
from evenflow.models import (
    Microbatch,
    Stage,
    build_stage,
    draw_of,
    draw_weights,
    read_config,
    read_weights,
    write_weights,
)
from evenflow.plan import Plan
from evenflow.program import verify_plan
from evenflow.runtime import (
    CudaMemoryMeter,
    MemoryMeter,
    Optimizer,
    OptimizerSettings,
    Transport,
    carry,
    choose_transport,
    clock_offset,
    connect,
    edges_of,
    memory_meter,
    rank_device,
    rank_devices,
    use_device,
)
from evenflow.train.checkpoint import read_shards, write_shard
from evenflow.train.lr_schedule import learning_rate
from evenflow.train.sampler import microbatch, sample_ids
from evenflow.train.store import TokenStore
from evenflow.units import format_bytes

# A peer is taken for lost after this many predicted steps, and never before a slow start could end.
_LOST_AFTER_STEPS = 20
_LOST_AFTER_S = 120.0


def run(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Train one rank of `payload["plan"]` and send each step's figures."""
    plan = load_plan(Path(payload["plan"]))
    torch.set_num_threads(plan.threads)
    device = rank_device(payload["places"][rank][1], payload["gpus"])
    use_device(device)
    meter = memory_meter(device)
    try:
        _train(rank, channel, payload, plan, meter, device)
    except (RuntimeError, MemoryError, RankError) as failure:
        error = failure.__cause__ if isinstance(failure, RankError) and failure.__cause__ else failure
        if not _is_out_of_memory(error):
            raise
        raise FaultError(
            f"out of memory: {first_line(error)}; it held {_held(meter)}, the plan expects "
            f"{format_bytes(plan.ranks[rank].peak_bytes)}. More processes or a smaller microbatch need less"
        ) from error


def _train(
    rank: int,
    channel: Channel,
    payload: dict[str, Any],
    plan: Plan,
    meter: MemoryMeter | CudaMemoryMeter,
    device: torch.device,
) -> None:
    program = verify_plan(plan)
    timeout_s = max(_LOST_AFTER_STEPS * plan.predicted.step_s, _LOST_AFTER_S)
    channel.send({"kind": "doing", "what": "meeting the other ranks"})
    host = connect(rank, len(plan.ranks), payload["rendezvous"], timeout_s)
    kind = choose_transport(rank_devices(payload["places"], payload["gpus"]))
    transport = carry(host, kind, rank, edges_of(plan.stage_rank), device, timeout_s)
    channel.send({"kind": "doing", "what": "building its stage"})
    stages = {number: _build(number, payload, plan, device) for number in plan.ranks[rank].stages}
    held = tuple(stages.values())
    parameters = {name: own for stage in held for name, own in stage.named_model_parameters().items()}
    optimizer = Optimizer(parameters, held[0].anatomy.parameters, OptimizerSettings())
    hidden: int = payload["hidden_size"]
    executor = Executor(program, rank, stages, transport, optimizer, (plan.micro_batch_size, plan.seq_length, hidden))
    store = TokenStore.open(Path(payload["tokens"]))
    steps: int = payload["steps"]
    done: int = payload["done_steps"]
    if done:
        channel.send({"kind": "doing", "what": f"reading its state after step {done}"})
        read_shards(Path(payload["checkpoint"]), done, held, optimizer)
    _compare_clocks(channel, host, rank, len(plan.ranks))
    for step in range(done + 1, payload["last_step"] + 1):
        channel.send({"kind": "doing", "what": f"in step {step}"})
        rate = learning_rate(step, steps, payload["learning_rate"])
        want_stop = any(message["kind"] == "stop" for message in channel.waiting())
        batch = _Batch(store, plan, payload["seed"], step, device)
        result = executor.run_step(
            batch, rate, want_stop, predicted=batch.predicted, draw=draw_of(payload["seed"], step, 0)
        )
        channel.send(
            {
                "kind": "step",
                "step": step,
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "lr": rate,
                "begin": result.begin_s,
                "spans": [moment for span in result.spans for moment in span],
                "peak": meter.peak_bytes(),
            }
        )
        if result.stop:
            break
    _compare_clocks(channel, host, rank, len(plan.ranks))
    channel.send({"kind": "doing", "what": "saving its state"})
    write_shard(Path(payload["checkpoint_out"]), rank, held, optimizer)
    sizes = write_weights(held, Path(payload["model_out"]), rank, len(plan.ranks))
    channel.send({"kind": "shard", "sizes": sizes})
    transport.close()


def _compare_clocks(channel: Channel, host: Transport, rank: int, ranks: int) -> None:
    own = clock_offset(host, rank, ranks)
    channel.send({"kind": "clock", "at": own.at_s, "offset": own.offset_s, "error": own.error_s})


def _build(number: int, payload: dict[str, Any], plan: Plan, device: torch.device) -> Stage:
    """A stage with its weights. They are drawn in host memory: a GPU's generator would draw others."""
    stage = build_stage(read_config(payload["config"]), plan.stages[number].layers, recompute=plan.recompute)
    draw_weights(stage, payload["seed"])
    if payload["weights"] and not payload["done_steps"]:
        read_weights(stage, [Path(file) for file in payload["weights"]])
    return stage.to(device).train()


class _Batch:
    """One step's microbatches: a function of (seed, step) alone, whatever the layout; none is kept."""

    def __init__(self, store: TokenStore, plan: Plan, seed: int, step: int, device: torch.device) -> None:
        self.store = store
        self.plan = plan
        self.device = device
        self.predicted = plan.global_batch_size * (plan.seq_length - 1)  # all of a sequence but its first token
        self.ids = sample_ids(seed, step, plan.global_batch_size, store.sequences(plan.seq_length))

    def __call__(self, index: int) -> Microbatch:
        """A microbatch [batch, seq], of which all is learned."""
        rows = microbatch(self.store, self.ids, index, self.plan.micro_batch_size, self.plan.seq_length)
        return Microbatch(torch.from_numpy(rows)).to(self.device)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _held(meter: MemoryMeter | CudaMemoryMeter) -> str:
    held = format_bytes(meter.peak_bytes())
    return held if isinstance(meter, MemoryMeter) else f"{held} ({format_bytes(meter.reserved_bytes())} reserved)"
