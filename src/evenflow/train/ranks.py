"""What each forked rank does to train: build its stage, run the program step after step, write its shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from evenflow.errors import first_line
from evenflow.execute import Executor, StepResult
from evenflow.files import load_plan
from evenflow.launch import Channel, pack
from evenflow.models import (
    Stage,
    add_z_loss,
    build_skeleton,
    build_stage,
    compute_in,
    draw_of,
    draw_weights,
    make_up_weights,
    read_config,
    read_weights,
    share_out,
    share_tied,
    tied_names,
    tp_plan_of,
    write_weights,
)
from evenflow.plan import Coordinates, Plan
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
    saying_what_lacks,
    set_gloo_timeouts,
    use_device,
)
from evenflow.train.batches import Batch
from evenflow.train.evaluation import Evaluator, HeldOut
from evenflow.train.lacking import held_and_planned, with_stages
from evenflow.train.lr_schedule import LrSchedule
from evenflow.train.patience import gloo_timeout_s
from evenflow.train.preflight import check_descriptors
from evenflow.train.sampler import hold_out, step_samples
from evenflow.train.saver import Saver, read_state
from evenflow.train.sequences import Sequences
from evenflow.train.store import TokenStore
from evenflow.units import format_bytes

MEMORY_EVERY = 8  # steps: one of so many looks at the memory after each action, as do the first two
_SLOW_DISK_S = 2.0  # that a save is waited for before the next one is left out


def run(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Train one process of `payload["plan"]` and send each step's figures; `rank` is its number in the whole job."""
    plan = load_plan(Path(payload["plan"]))
    check_descriptors(plan)
    torch.set_num_threads(plan.threads)
    device = rank_device(payload["places"][rank][1], payload["gpus"])
    use_device(device)
    meter = memory_meter(device)

    def lacks(error: str) -> str:
        at = channel.heartbeat.action or "its beginning"
        return f", at {at}, {with_stages(plan, rank)}: {error}; {held_and_planned(plan, rank, _held(meter))}"

    with saying_what_lacks(lacks):
        _train(rank, channel, payload, plan, meter, device)


def _train(
    rank: int,
    channel: Channel,
    payload: dict[str, Any],
    plan: Plan,
    meter: MemoryMeter | CudaMemoryMeter,
    device: torch.device,
) -> None:
    program = verify_plan(plan)
    channel.doing("meeting the other ranks")
    axes, at = plan.axes, plan.axes.coordinates(rank)
    host, transport, mesh = _meet(rank, payload, plan, device)
    channel.doing("building its stage")
    executor, held, optimizer, reductions = assemble(payload, plan, program, transport, mesh, device)
    executor.heartbeat = channel.heartbeat
    executor.refuses_nan = payload["stop_on_nan"]
    sequences = _sequences(Path(payload["tokens"]), payload, plan)
    trained, held_out = _divide(sequences, payload, plan)
    evaluator = Evaluator(executor, mesh, held_out, payload["hidden_size"], device) if held_out else None
    done: int = payload["done_steps"]
    if done:
        channel.doing(f"reading its state after step {done}")
        read_state(Path(payload["checkpoint"]), done, held, optimizer)
    saver = Saver(Path(payload["run"]), at.pp * axes.tp + at.tp, held, optimizer, reductions, writes=at.dp == 0)
    if done:
        hashes = saver.hashes()
        if at.dp == 0:
            channel.send({"kind": "state", "hashes": hashes})
    if payload["save_every"] and saver.descriptor is not None:
        channel.send({"kind": "copies", "descriptor": saver.descriptor, "shard": saver.shard})
    _compare_clocks(channel, host, rank, axes.processes)
    step = _take_steps(
        channel, payload, plan, _Working(at, host, executor, evaluator, saver, sequences, trained, meter, device)
    )
    if step is None:
        return
    set_gloo_timeouts(host, gloo_timeout_s(plan.predicted.step_s, None))
    _compare_clocks(channel, host, rank, axes.processes)
    channel.doing("saving its state")
    _save_last(channel, host, saver, step)
    if at.dp == 0:
        _write_model(channel, held, Path(payload["model_out"]), at, axes.pp)
    transport.close()


@dataclass(frozen=True, slots=True)
class _Working:
    """What a rank takes steps with."""

    at: Coordinates
    host: Transport
    executor: Executor
    evaluator: Evaluator | None
    saver: Saver
    sequences: Sequences
    trained: NDArray[np.int64]
    meter: MemoryMeter | CudaMemoryMeter
    device: torch.device


def _take_steps(channel: Channel, payload: dict[str, Any], plan: Plan, own: _Working) -> int | None:
    """Take one step after another until the last, or until a rank was asked to stop; returns the newest step.

    None where its numbers are none any more: it is told of, and nothing more is done; whoever hears it ends the run.
    """
    rates, first = LrSchedule(**payload["rates"]), payload["done_steps"] + 1
    at, executor, saver = own.at, own.executor, own.saver
    names_samples = 0 in executor.runners and at.tp == 0
    for step in range(first, payload["last_step"] + 1):
        channel.doing(f"in step {step}", timed=True)
        rate = rates.at(step)
        want_stop = any(message["kind"] == "stop" for message in channel.waiting())
        samples = step_samples(payload["seed"], step, plan.global_batch_size, own.trained)
        batch = Batch(own.sequences, samples, plan.micro_batch_size, at.dp, plan.axes.dp, own.device)
        draw = draw_of(payload["seed"], step)
        executor.gauge = own.meter.held_bytes if step <= first + 1 or (step - first) % MEMORY_EVERY == 0 else None
        result = executor.run_step(batch, rate, want_stop, predicted=batch.predicted, draw=draw, lengths=batch.lengths)
        report = {**_step_report(step, result, rate), "peak": own.meter.peak_bytes(), "tokens": batch.tokens}
        if result.refused:
            channel.doing("ending", timed=False)
            while not _all_idle(own.host, saver):
                pass  # it has waited for a while, as before the last save
            _tell(channel, saver.finish())  # of a step that was good, and heard of before the run ends
        elif own.evaluator and _is_evaluated(step, payload):
            report["eval_loss"] = own.evaluator.loss(lambda what: channel.doing(what, timed=True))
        channel.send({**report, "samples": batch.samples() if names_samples else []})
        if result.refused:
            _all_idle(own.host, saver)  # nobody leaves before all have told theirs
            return None
        _tell(channel, saver.done())
        if step == first:
            set_gloo_timeouts(own.host, gloo_timeout_s(plan.predicted.step_s, result.end_s - result.begin_s))
        if result.stop:
            break
        if payload["save_every"] and step % payload["save_every"] == 0 and step < payload["last_step"]:
            channel.doing(f"copying its state after step {step}")
            _save(channel, own.host, saver, step)
    return step


def _all_idle(host: Transport, saver: Saver) -> bool:
    """Whether all ranks have written the save before, with some patience.

    So a slow disk holds up no step for long, and no rank takes part in a save that another one leaves out.
    """
    busy = torch.tensor([float(not saver.idle(_SLOW_DISK_S))], dtype=torch.float64)
    host.sum(busy)
    return not busy.item()


def _write_model(channel: Channel, held: tuple[Stage, ...], folder: Path, at: Coordinates, ranks: int) -> None:
    """Write this rank's shard of the model; that it cannot be is told, so that no rank is ended while it saves."""
    try:
        folder.mkdir(parents=True, exist_ok=True)  # only now: a run may start while the disk is full
        sizes = write_weights(held, folder, at.pp, ranks)
    except (OSError, SafetensorError) as error:
        channel.send({"kind": "unwritten", "why": first_line(error)})
        return
    if at.tp == 0:
        channel.send({"kind": "shard", "sizes": sizes})


def _save(channel: Channel, host: Transport, saver: Saver, step: int) -> None:
    """Begin to save the state after a step, where all ranks have written the one before."""
    if not _all_idle(host, saver):
        channel.send({"kind": "skipped", "step": step})
        return
    _tell(channel, saver.finish())  # before its copy is written over
    _tell(channel, saver.start(step))


def _save_last(channel: Channel, host: Transport, saver: Saver, step: int) -> None:
    """Save the state after the last step, once all ranks have written the save before, however long that takes.

    Ranks that share out the optimizer's state gather it for this one: one that came late to that, from a slow disk,
    would be taken for lost by its peers. So they ask each other, in exchanges that are short.
    """
    while not _all_idle(host, saver):
        pass  # it has waited for a while
    _tell(channel, saver.finish())  # before what may fail
    _tell(channel, saver.save_last(step))


def _meet(rank: int, payload: dict[str, Any], plan: Plan, device: torch.device) -> tuple[Transport, Transport, Mesh]:
    """Find the other processes: a transport to all, one to the ranks of this pipeline, and the groups of the axes."""
    timeout_s = gloo_timeout_s(plan.predicted.step_s, None)
    axes = plan.axes
    host = connect(rank, axes.processes, payload["rendezvous"], timeout_s)
    kind = choose_transport(rank_devices(payload["places"], payload["gpus"]))
    job = carry(host, kind, rank, job_edges(axes, edges_of(plan.stage_rank)), device, timeout_s)
    transport = PipelineTransport(job, axes.pipeline(axes.coordinates(rank)))
    tied_ranks = [[plan.stage_rank[stage] for stage in group] for group in plan.tied]
    return host, transport, make_mesh(axes, rank, tied_ranks, timeout_s, device, own_gpus=kind == "nccl")


def assemble(
    payload: dict[str, Any], plan: Plan, program: Program, transport: Transport, mesh: Mesh, device: torch.device
) -> tuple[Executor, tuple[Stage, ...], Optimizer, Reductions]:
    """This rank's stages with their weights, what updates them, and what runs them.

    Args:
        payload: `config` (JSON of the model's), `hidden_size`, `crossing` (the type of what crosses stages), `seed`,
            `optimizer`, `weights` (files), `done_steps`; with `made_up` weights are made up where the stage computes,
            by nobody's initialisation.
        plan: the plan.
        program: its program.
        transport: to the other ranks of its pipeline.
        mesh: where this process is.
        device: where it computes.
    """
    rank = mesh.at.pp
    stages = {number: _build(number, payload, plan, mesh, device) for number in plan.ranks[rank].stages}
    held = tuple(stages.values())
    share_tied(held)
    anatomy = held[0].anatomy
    named = {number: stage.named_model_parameters() for number, stage in stages.items()}
    reductions = Reductions(program, mesh, named, tied_names(anatomy), shares=plan.zero == 1)
    optimizer = Optimizer(reductions.updated, anatomy.parameters, _settings(payload), reductions.uncounted)
    boundary = (plan.micro_batch_size, plan.seq_length, payload["hidden_size"])
    executor = Executor(
        program,
        rank,
        stages,
        transport,
        optimizer,
        boundary,
        reductions=reductions,
        mesh=mesh,
        crossing=payload["crossing"],
    )
    return executor, held, optimizer, reductions


def _sequences(tokens: Path, payload: dict[str, Any], plan: Plan) -> Sequences:
    return Sequences(TokenStore.open(tokens), plan.seq_length, payload["packing"], payload["separate"])


def _divide(sequences: Sequences, payload: dict[str, Any], plan: Plan) -> tuple[NDArray[np.int64], HeldOut | None]:
    """Which sequences are trained on, and what is evaluated."""
    asked, everything = payload["evaluation"], np.arange(len(sequences))
    if asked is None:
        return everything, None
    if asked["tokens"] is not None:
        others = _sequences(Path(asked["tokens"]), payload, plan)
        return everything, HeldOut(others, range(len(others)), asked["micro_batch_size"])
    trained, held_out = hold_out(payload["seed"], len(sequences), asked["share"])
    return trained, HeldOut(sequences, held_out.tolist(), asked["micro_batch_size"])


def _is_evaluated(step: int, payload: dict[str, Any]) -> bool:
    """Every so many steps, and after the last of the whole run."""
    every = payload["evaluation"]["every"]
    return step == payload["rates"]["steps"] or (every is not None and step % every == 0)


def _step_report(step: int, result: StepResult, rate: float) -> dict[str, Any]:
    return {
        "kind": "step",
        "step": step,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": rate,
        "begin": result.begin_s,
        "spans": pack(moment for span in result.spans for moment in span),
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
    add_z_loss(stage, payload.get("z_loss", 0.0))
    if payload.get("made_up"):
        make_up_weights(stage, device)
    else:
        draw_weights(stage, payload["seed"])
        if payload["weights"] and not payload["done_steps"]:
            read_weights(stage, [Path(file) for file in payload["weights"]])
    compute_in(stage, plan.dtype)
    stage.to(device).train()
    if stage.sharing is not None and mesh.tp is not None:
        stage.sharing.distribute(mesh.tp)
    return stage


def _held(meter: MemoryMeter | CudaMemoryMeter) -> str:
    held = format_bytes(meter.peak_bytes())
    return held if isinstance(meter, MemoryMeter) else f"{held} ({format_bytes(meter.reserved_bytes())} reserved)"
