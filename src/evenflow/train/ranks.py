"""What each forked rank does to train: build its stage, run the program step after step, write its shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evenflow.errors import FaultError, RankError, first_line
from evenflow.execute import Executor, StepResult
from evenflow.files import load_plan
from evenflow.launch import Channel
from evenflow.models import (
    Microbatch,
    Stage,
    build_skeleton,
    build_stage,
    draw_of,
    draw_weights,
    read_config,
    read_weights,
    share_out,
    share_tied,
    tied_names,
    tp_plan_of,
    write_weights,
)
from evenflow.plan import Plan
from evenflow.program import Program, verify_plan
from evenflow.runtime import (
    CudaMemoryMeter,
    MemoryMeter,
    Mesh,
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
    use_device,
)
from evenflow.train.lr_schedule import LrSchedule
from evenflow.train.sampler import microbatch, sample_ids
from evenflow.train.saver import Saver, read_state
from evenflow.train.sequences import Sequences
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
    channel.send({"kind": "doing", "what": "meeting the other ranks"})
    axes, at = plan.axes, plan.axes.coordinates(rank)
    host, transport, mesh = _meet(rank, payload, plan, device)
    channel.send({"kind": "doing", "what": "building its stage"})
    executor, held, optimizer, reductions = _assemble(payload, plan, program, transport, mesh, device)
    executor.gauge = meter.held_bytes
    store = TokenStore.open(Path(payload["tokens"]))
    sequences = Sequences(store, plan.seq_length, payload["packing"], payload["separate"])
    rates = LrSchedule(**payload["rates"])
    done: int = payload["done_steps"]
    if done:
        channel.send({"kind": "doing", "what": f"reading its state after step {done}"})
        read_state(Path(payload["checkpoint"]), done, held, optimizer)
    shard = at.pp * axes.tp + at.tp
    saver = Saver(Path(payload["run"]), shard, held, optimizer, reductions, writes=at.dp == 0)
    _compare_clocks(channel, host, rank, axes.processes)
    for step in range(done + 1, payload["last_step"] + 1):
        channel.send({"kind": "doing", "what": f"in step {step}"})
        rate = rates.at(step)
        want_stop = any(message["kind"] == "stop" for message in channel.waiting())
        batch = _Batch(sequences, plan, payload["seed"], step, at.dp, device)
        draw = draw_of(payload["seed"], step, at.dp)
        result = executor.run_step(batch, rate, want_stop, predicted=batch.predicted, draw=draw)
        samples = batch.samples() if held[0].is_first and at.tp == 0 else []
        channel.send({**_step_report(step, result, rate), "peak": meter.peak_bytes(), "samples": samples})
        _tell(channel, saver.done())
        if result.stop:
            break
        if payload["save_every"] and step % payload["save_every"] == 0 and step < payload["last_step"]:
            _tell(channel, saver.start(step))
    _compare_clocks(channel, host, rank, axes.processes)
    channel.send({"kind": "doing", "what": "saving its state"})
    _tell(channel, saver.save_last(step))
    if at.dp == 0:
        sizes = write_weights(held, Path(payload["model_out"]), at.pp, axes.pp)
        if at.tp == 0:
            channel.send({"kind": "shard", "sizes": sizes})
    transport.close()


def _meet(rank: int, payload: dict[str, Any], plan: Plan, device: torch.device) -> tuple[Transport, Transport, Mesh]:
    """Find the other processes: a transport to all, one to the ranks of this pipeline, and the groups of the axes."""
    timeout_s = max(_LOST_AFTER_STEPS * plan.predicted.step_s, _LOST_AFTER_S)
    axes = plan.axes
    host = connect(rank, axes.processes, payload["rendezvous"], timeout_s)
    kind = choose_transport(rank_devices(payload["places"], payload["gpus"]))
    job = carry(host, kind, rank, job_edges(axes, edges_of(plan.stage_rank)), device, timeout_s)
    transport = PipelineTransport(job, axes.pipeline(axes.coordinates(rank)))
    tied_ranks = [[plan.stage_rank[stage] for stage in group] for group in plan.tied]
    return host, transport, make_mesh(axes, rank, tied_ranks, timeout_s, device, own_gpus=kind == "nccl")


def _assemble(
    payload: dict[str, Any], plan: Plan, program: Program, transport: Transport, mesh: Mesh, device: torch.device
) -> tuple[Executor, tuple[Stage, ...], Optimizer, Reductions]:
    """This rank's stages with their weights, what updates them, and what runs them."""
    rank = mesh.at.pp
    stages = {number: _build(number, payload, plan, mesh, device) for number in plan.ranks[rank].stages}
    held = tuple(stages.values())
    share_tied(held)
    anatomy = held[0].anatomy
    named = {number: stage.named_model_parameters() for number, stage in stages.items()}
    reductions = Reductions(program, mesh, named, tied_names(anatomy), shares=plan.zero == 1)
    optimizer = Optimizer(reductions.updated, anatomy.parameters, _settings(payload), reductions.uncounted)
    boundary = (plan.micro_batch_size, plan.seq_length, payload["hidden_size"])
    executor = Executor(program, rank, stages, transport, optimizer, boundary, reductions=reductions, mesh=mesh)
    return executor, held, optimizer, reductions


def _step_report(step: int, result: StepResult, rate: float) -> dict[str, Any]:
    return {
        "kind": "step",
        "step": step,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": rate,
        "begin": result.begin_s,
        "spans": [moment for span in result.spans for moment in span],
        "memory": list(result.memory),
    }


def _settings(payload: dict[str, Any]) -> OptimizerSettings:
    given = payload["optimizer"]
    return OptimizerSettings(**{**given, "undecayed": tuple(given["undecayed"])})


def _tell(channel: Channel, reports: list[dict[str, Any]]) -> None:
    for report in reports:
        channel.send(report)


def _compare_clocks(channel: Channel, host: Transport, rank: int, ranks: int) -> None:
    own = clock_offset(host, rank, ranks)
    channel.send({"kind": "clock", "at": own.at_s, "offset": own.offset_s, "error": own.error_s})


def _build(number: int, payload: dict[str, Any], plan: Plan, mesh: Mesh, device: torch.device) -> Stage:
    """A stage with its weights. They are drawn in host memory: a GPU's generator would draw others."""
    config = read_config(payload["config"])
    stage = build_stage(config, plan.stages[number].layers, recompute=plan.recompute)
    if mesh.shards is not None:
        share_out(stage, tp_plan_of(build_skeleton(config)), mesh.shards)
    draw_weights(stage, payload["seed"])
    if payload["weights"] and not payload["done_steps"]:
        read_weights(stage, [Path(file) for file in payload["weights"]])
    stage.to(device).train()
    if stage.sharing is not None and mesh.tp is not None:
        stage.sharing.distribute(mesh.tp)
    return stage


class _Batch:
    """One replica's microbatches of a step: a function of (seed, step, replica), whatever the layout; none is kept.

    A step's sequences are a function of (seed, step) alone; replica d reads the d-th run of them.

    Attributes:
        ids: the step's samples.
        read: those that were asked for so far, by microbatch of this replica.
    """

    def __init__(
        self, sequences: Sequences, plan: Plan, seed: int, step: int, replica: int, device: torch.device
    ) -> None:
        self.first = replica * plan.microbatches
        self.sequences = sequences
        self.plan = plan
        self.device = device
        self.read: dict[int, tuple[int, ...]] = {}
        self.predicted = plan.global_batch_size * (plan.seq_length - 1)  # all of a sequence but its first token
        self.ids = sample_ids(seed, step, plan.global_batch_size, len(sequences))

    def __call__(self, index: int) -> Microbatch:
        """A microbatch [batch, seq], of which all is learned."""
        size, number = self.plan.micro_batch_size, self.first + index
        rows = microbatch(self.sequences, self.ids, number, size)
        self.read[index] = self.ids[number * size : (number + 1) * size]
        return Microbatch(torch.from_numpy(rows.ids)).to(self.device)

    def samples(self) -> list[int]:
        """What was read, in the order of the batch."""
        return [sample for index in sorted(self.read) for sample in self.read[index]]


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _held(meter: MemoryMeter | CudaMemoryMeter) -> str:
    held = format_bytes(meter.peak_bytes())
    return held if isinstance(meter, MemoryMeter) else f"{held} ({format_bytes(meter.reserved_bytes())} reserved)"
