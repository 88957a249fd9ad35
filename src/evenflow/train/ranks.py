"""What each forked rank does to train: build its stage, run the program step after step, write its shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenflow.errors import FaultError, RankError, first_line
from evenflow.execute import Executor
from evenflow.files import load_plan
from evenflow.launch import Channel
from evenflow.models import (
    Stage,
    build_stage,
    draw_weights,
    read_config,
    read_weights,
    share_tied,
    tied_names,
    write_weights,
)
from evenflow.plan import Plan
from evenflow.program import verify_plan
from evenflow.runtime import (
    MOMENTS,
    CudaMemoryMeter,
    MemoryMeter,
    Optimizer,
    OptimizerSettings,
    PipelineTransport,
    Reductions,
    Transport,
    carry,
    choose_transport,
    clock_offset,
    connect,
    edges_of,
    job_edges,
    make_mesh,
    memory_meter,
    rank_device,
    rank_devices,
    to_device,
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
    """Train one process of `payload["plan"]` and send each step's figures; `rank` is its number in the whole job."""
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
        expected = plan.ranks[plan.axes.coordinates(rank).pp].peak_bytes
        raise FaultError(
            f"out of memory: {first_line(error)}; it held {_held(meter)}, the plan expects "
            f"{format_bytes(expected)}. More processes or a smaller microbatch need less"
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
    axes, at = plan.axes, plan.axes.coordinates(rank)
    host = connect(rank, axes.processes, payload["rendezvous"], timeout_s)
    kind = choose_transport(rank_devices(payload["places"], payload["gpus"]))
    job = carry(host, kind, rank, job_edges(axes, edges_of(plan.stage_rank)), device, timeout_s)
    transport = PipelineTransport(job, axes.pipeline(at))
    tied_ranks = [[plan.stage_rank[stage] for stage in group] for group in plan.tied]
    mesh = make_mesh(axes, rank, tied_ranks, timeout_s)
    channel.send({"kind": "doing", "what": "building its stage"})
    stages = {number: _build(number, payload, plan, device) for number in plan.ranks[at.pp].stages}
    held = tuple(stages.values())
    share_tied(held)
    anatomy = held[0].anatomy
    reductions = Reductions(
        program,
        mesh,
        {number: stage.named_model_parameters() for number, stage in stages.items()},
        tied_names(anatomy),
        shares=plan.zero == 1,
    )
    optimizer = Optimizer(reductions.updated, anatomy.parameters, OptimizerSettings(), reductions.uncounted)
    hidden: int = payload["hidden_size"]
    executor = Executor(
        program,
        at.pp,
        stages,
        transport,
        optimizer,
        (plan.micro_batch_size, plan.seq_length, hidden),
        reductions=reductions,
        mesh=mesh,
    )
    store = TokenStore.open(Path(payload["tokens"]))
    steps: int = payload["steps"]
    done: int = payload["done_steps"]
    if done:
        channel.send({"kind": "doing", "what": f"reading its state after step {done}"})
        read_shards(Path(payload["checkpoint"]), done, held, optimizer)
    _compare_clocks(channel, host, rank, axes.processes)
    for step in range(done + 1, payload["last_step"] + 1):
        channel.send({"kind": "doing", "what": f"in step {step}"})
        rate = learning_rate(step, steps, payload["learning_rate"])
        want_stop = any(message["kind"] == "stop" for message in channel.waiting())
        result = executor.run_step(_Batch(store, plan, payload["seed"], step, at.dp, device), rate, want_stop)
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
    _compare_clocks(channel, host, rank, axes.processes)
    channel.send({"kind": "doing", "what": "saving its state"})
    moments = reductions.gathered(optimizer.moments(), MOMENTS)
    if at.dp == 0:  # each weight is written once: by the first replica, and of tied copies by the embedding's rank
        write_shard(Path(payload["checkpoint_out"]), at.pp, held, moments, reductions.elsewhere)
        sizes = write_weights(held, Path(payload["model_out"]), at.pp, axes.pp)
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
    """One replica's microbatches of a step: a function of (seed, step, replica), whatever the layout; none is kept.

    A step's sequences are a function of (seed, step) alone; replica d reads the d-th run of them.
    """

    def __init__(self, store: TokenStore, plan: Plan, seed: int, step: int, replica: int, device: torch.device) -> None:
        self.first = replica * plan.microbatches
        self.store = store
        self.plan = plan
        self.device = device
        self.ids = sample_ids(seed, step, plan.global_batch_size, store.sequences(plan.seq_length))

    def __call__(self, index: int) -> Tensor:
        """The token ids [batch, seq] of a microbatch."""
        rows = microbatch(self.store, self.ids, self.first + index, self.plan.micro_batch_size, self.plan.seq_length)
        return to_device(torch.from_numpy(rows), self.device)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _held(meter: MemoryMeter | CudaMemoryMeter) -> str:
    held = format_bytes(meter.peak_bytes())
    return held if isinstance(meter, MemoryMeter) else f"{held} ({format_bytes(meter.reserved_bytes())} reserved)"
