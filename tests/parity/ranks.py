"""What the forked ranks of the parity tests run: some steps of a split model on made-up tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from evenflow.cost import RankCost, StageCost, StageMemory
from evenflow.execute import Executor
from evenflow.launch import Channel
from evenflow.models import (
    NOT_LEARNED,
    Microbatch,
    add_z_loss,
    build_skeleton,
    build_stage,
    compute_in,
    draw_of,
    draw_weights,
    share_out,
    share_tied,
    tied_names,
    tp_plan_of,
)
from evenflow.plan import Axes
from evenflow.program import AUTO, SCHEDULES, Program, build_program, lower, parse_order, stages_of, verify
from evenflow.runtime import (
    MOMENTS,
    EdgeGroupTransport,
    Optimizer,
    OptimizerSettings,
    PipelineTransport,
    Reductions,
    StagedTransport,
    Transport,
    carry,
    choose_transport,
    connect,
    edges_of,
    job_edges,
    local,
    make_mesh,
    memory_meter,
    rank_device,
    use_device,
)
from evenflow.search import make_auto, plan_work
from evenflow.simulate import Hardware, free_transfers
from evenflow.spec import RECOMPUTES


def tokens_of(step: int, microbatch: int, batch: int, seq: int, vocabulary: int) -> torch.Tensor:
    """Token ids [batch, seq] that depend on step and microbatch alone."""
    generator = torch.Generator().manual_seed(1_000 * step + microbatch)
    return torch.randint(0, vocabulary, (batch, seq), generator=generator)


def microbatch_of(step: int, number: int, payload: dict[str, Any], vocabulary: int) -> Microbatch:
    """What a test asks for: `lengths` that differ, `masked` labels (of microbatch 1 all), `packed` documents."""
    batch, seq = payload["shape"]
    seq = payload.get("lengths", {}).get(str(number), seq)
    ids = tokens_of(step, number, batch, seq, vocabulary)
    labels = positions = None
    if payload.get("masked"):
        generator = torch.Generator().manual_seed(7 * step + number)
        hidden = torch.rand(batch, seq, generator=generator) < (1.0 if number == 1 else 0.3 * number)
        labels = ids.masked_fill(hidden, NOT_LEARNED)
    if payload.get("packed"):
        cut = 3 + number
        positions = torch.cat([torch.arange(cut), torch.arange(seq - cut)]).expand(batch, -1)
        labels = (ids if labels is None else labels).clone()
        labels[:, cut] = NOT_LEARNED
    return Microbatch(ids, labels, positions)


def run(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Train `steps` steps; save weights and, of the first step, gradients before clipping."""
    torch.set_num_threads(1)
    split: list[list[int]] = payload["split"]
    config = AutoConfig.for_model(payload["config"].pop("model_type"), **payload["config"])
    folder = Path(payload["folder"])
    axes = Axes(**payload.get("axes") or {"pp": max(payload["stage_rank"]) + 1})
    at = axes.coordinates(rank)
    tied = ((0, len(split) - 1),) if config.tie_word_embeddings and len(split) > 1 else ()
    if "order" in payload:
        program = lower(parse_order(payload["order"]), tuple(payload["stage_rank"]), payload["microbatches"])
    else:
        program = program_of(payload["schedule"], payload["stage_rank"], payload["microbatches"])
        if tied or axes.dp > 1:
            order = program.compute_order()
            program = lower(order, program.stage_rank, program.microbatches, reduces=axes.dp > 1, tied=tied)
    verify(program)
    device = rank_device(rank, payload.get("gpus", 0))
    use_device(device, deterministic=True)
    meter = memory_meter(device)
    transport = _transport(rank, axes, program, folder / "rendezvous", payload)
    mesh = make_mesh(axes, rank, [[program.stage_rank[stage] for stage in group] for group in tied], 60, device)
    recompute = payload["recompute"]
    if recompute == "mixed":
        recompute = [RECOMPUTES[layer % len(RECOMPUTES)] for layer in range(sum(map(len, split)))]
    stages = {
        number: build_stage(config, split[number], recompute=recompute)
        for number in stages_of(program.stage_rank, at.pp)
    }
    for stage in stages.values():
        if mesh.shards is not None:
            share_out(stage, tp_plan_of(build_skeleton(config)), mesh.shards)
        add_z_loss(stage, payload.get("z_loss", 0.0))
        draw_weights(stage, payload["seed"])
        compute_in(stage, payload.get("dtype", "fp32"))
        stage.to(device)
        if stage.sharing is not None and mesh.tp is not None:
            stage.sharing.distribute(mesh.tp)
    share_tied(list(stages.values()))
    anatomy = next(iter(stages.values())).anatomy
    reductions = Reductions(
        program,
        mesh,
        {number: stage.named_model_parameters() for number, stage in stages.items()},
        tied_names(anatomy),
        shares=payload.get("zero") == 1,
    )
    parameters = {name: own for stage in stages.values() for name, own in stage.named_model_parameters().items()}
    optimizer = GradientKeeper(reductions.updated, anatomy.parameters, OptimizerSettings(), reductions.uncounted)
    batch, seq = payload["shape"]
    executor = Executor(
        program,
        at.pp,
        stages,
        PipelineTransport(transport, axes.pipeline(at)),
        optimizer,
        (batch, seq, config.hidden_size),
        reductions=reductions,
        mesh=mesh,
        crossing=payload.get("dtype", "fp32"),
    )
    first, replicas = at.dp * program.microbatches, axes.dp
    results = []
    for step in range(1, payload["steps"] + 1):
        every = [
            microbatch_of(step, number, payload, config.vocab_size) for number in range(program.microbatches * replicas)
        ]
        result = executor.run_step(
            lambda number, every=every: every[first + number].to(device),
            1e-3,
            predicted=sum(own.predicted for own in every),
            draw=draw_of(payload["seed"], step),
            lengths=[own.ids.shape[1] for own in every[first : first + program.microbatches]],
        )
        results.append([result.loss, result.grad_norm])
    moments = reductions.gathered(optimizer.moments(), MOMENTS)
    transport.close()
    save_file(optimizer.first, folder / f"gradients-{rank}.safetensors")
    weights = {name: local(parameter.detach()) for name, parameter in parameters.items()}
    sharings = [stage.sharing for stage in stages.values() if stage.sharing is not None]
    save_file(weights, folder / f"weights-{rank}.safetensors")
    save_file(moments, folder / f"moments-{rank}.safetensors")
    channel.send(
        {
            "kind": "result",
            "steps": results,
            "buffers": executor.pool.made,
            "host_buffers": transport.buffers.made if isinstance(transport, StagedTransport) else 0,
            "peak": meter.peak_bytes(),
            "cuts": {name: asdict(cut) for own in sharings for name, cut in own.cuts.items()},
            "spans": [list(span) for span in result.spans],
        }
    )


def _transport(rank: int, axes: Axes, program: Program, rendezvous: Path, payload: dict[str, Any]) -> Transport:
    """What the ranks' devices ask for, or what the test does: `edges` is NCCL's code path, over gloo."""
    ranks, gpus = axes.processes, payload.get("gpus", 0)
    kind = payload.get("transport") or choose_transport([str(rank_device(other, gpus)) for other in range(ranks)])
    host, edges, device = (
        connect(rank, ranks, rendezvous, 60),
        job_edges(axes, edges_of(program.stage_rank)),
        rank_device(rank, gpus),
    )
    if kind == "edges":
        return EdgeGroupTransport(host, rank, edges, "gloo", device, 60)
    return carry(host, kind, rank, edges, device, 60)


def program_of(schedule: str, stage_rank: Sequence[int], microbatches: int) -> Program:
    """The program of a schedule; one that depends on costs gets stages that all differ."""
    chance = Random(len(stage_rank))
    stages = []
    for _ in stage_rank:
        forward, half, weight = (chance.uniform(0.5, 2.0) for _ in range(3))
        stages.append(StageCost(forward, half + weight, half, weight))
    ranks = max(stage_rank) + 1
    nothing = StageMemory(0, 0, 0, 0, 0, 0, 0, 0)
    hardware = Hardware(stages, [RankCost(0.0, 0.0)] * ranks, free_transfers(), [nothing] * len(stages))
    if schedule == AUTO:
        return make_auto(tuple(stage_rank), microbatches, hardware, [1.0] * ranks).program
    work = plan_work(tuple(stage_rank), microbatches, hardware) if SCHEDULES[schedule].by_costs else None
    return build_program(schedule, stage_rank, microbatches, work)


class GradientKeeper(Optimizer):
    """Keeps the first step's gradients as they are before clipping."""

    first: dict[str, torch.Tensor] | None = None

    def gradient_norms(self) -> torch.Tensor:
        """Copy the gradients, then go on as usual."""
        if self.first is None:
            self.first = {
                name: parameter.grad.clone()
                for name, parameter in self.parameters.items()
                if parameter.grad is not None
            }
        return super().gradient_norms()
