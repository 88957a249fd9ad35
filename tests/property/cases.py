"""Made-up models, costs and splits, so that a test says only what matters to it and chance says the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from random import Random
from typing import Any

from evenflow.cost import (
    Costs,
    LayerCost,
    LinkCost,
    Links,
    MemoryModel,
    RankCost,
    StageCost,
    StageMemory,
    rank_costs,
    stage_costs,
)
from evenflow.program import Program, parse_ranks
from evenflow.simulate import Hardware, free_transfers
from evenflow.spec import Activations, Again, Cluster, Device, Layer, Model, Operator

Split = tuple[tuple[int, ...], ...]

NO_MEMORY = StageMemory(0, 0, 0, 0, 0, 0, 0, 0)
NO_RANK_COST = RankCost(0.0, 0.0)


def all_splits(layers: int, stages: int) -> Iterator[Split]:
    """Every contiguous split with no empty stage."""
    for cuts in combinations(range(1, layers), stages - 1):
        edges = (0, *cuts, layers)
        yield tuple(tuple(range(first, end)) for first, end in pairwise(edges))


def model_of(
    layers: int,
    *,
    parameter_bytes: Sequence[int] | None = None,
    saved_bytes: Sequence[int] | None = None,
    pending_bytes: Sequence[int] | None = None,
    passing_bytes: Sequence[int] | None = None,
    recomputed_bytes: tuple[int, int] | None = None,
    selective_bytes: int = 0,
    output_bytes: int = 0,
    tied: bool = False,
) -> Model:
    """An embedding, blocks and a head; bytes are zero where they are not given.

    `recomputed_bytes` is what a block saves and what it holds in passing where its forward is run again;
    `selective_bytes` what it saves where its attention is.
    """
    kinds = ["embedding", *["block"] * (layers - 2), "head"][-layers:]
    zeros = [0] * layers
    passing = passing_bytes or zeros
    again: tuple[Again, ...] = ()
    if recomputed_bytes:
        kept, most = recomputed_bytes
        again = (Again("full", 1000, (), Activations(kept, 0, 0, most, most, most, most, most, 0)),)
    if selective_bytes:
        again += (Again("selective", 400, (), Activations(selective_bytes, *[0] * 8)),)
    return Model(
        name="made-up",
        architecture="MadeUpForCausalLM",
        vocab_size=100,
        hidden_size=8,
        tied_embeddings=tied,
        micro_batch_size=1,
        seq_length=16,
        layers=tuple(
            Layer(
                name=f"layers.{index}",
                kind=kind,  # type: ignore[arg-type]
                signature=kind,
                parameters=own // 4,
                parameter_bytes=own,
                operators=(Operator("mm", 1000, 2000),),
                weight_flops=1000,
                saved_bytes=saved,
                pending_bytes=pending,
                output_bytes=output_bytes,
                forward_peak_bytes=transient,
                backward_peak_bytes=transient,
                input_peak_bytes=transient,
                first_backward_peak_bytes=transient + own,
                first_input_peak_bytes=transient + own // 4,
                weight_bytes=own - own // 4,
                recomputed=again if kind == "block" else (),
            )
            for index, (kind, own, saved, pending, transient) in enumerate(
                zip(
                    kinds,
                    parameter_bytes or zeros,
                    saved_bytes or zeros,
                    pending_bytes or zeros,
                    passing,
                    strict=True,
                )
            )
        ),
    )


def costs_of(
    forward: Sequence[float],
    backward: Sequence[float] | None = None,
    *,
    input_half: Sequence[float] | None = None,
    norm: Sequence[float] | None = None,
    optimizer: Sequence[float] | None = None,
    link: LinkCost | None = None,
    reduce_s: float = 0.0,
    stage_s: tuple[float, float] = (0.0, 0.0),
    recompute: Sequence[float] | None = None,
    selective: Sequence[float] | None = None,
) -> Costs:
    """Costs of layers.

    Backward takes twice the forward, its halves are equal, and all else is free where it is not given.
    """
    zeros = [0.0] * len(forward)
    backward = backward or [2 * own for own in forward]
    if input_half is None:
        input_half = [own / 2 for own in backward]
    return Costs(
        layers=tuple(
            LayerCost(*own)
            for own in zip(
                forward,
                backward,
                input_half,
                [whole - half for whole, half in zip(backward, input_half, strict=True)],
                norm or zeros,
                optimizer or zeros,
                recompute or zeros,
                selective or zeros,
                strict=True,
            )
        ),
        stage_forward_s=stage_s[0],
        stage_backward_s=stage_s[1],
        link=link or free_transfers(),
        reduce_s=reduce_s,
        peak_flops=1e9,
        origin={
            "layers": "measured",
            "halves": "assumed",
            "link": "assumed",
            "optimizer": "assumed",
            "memory": "analytic",
        },
    )


def random_costs(random: Random, layers: int, *, with_link: bool = True) -> Costs:
    """Costs as uneven as real ones: blocks equal or not, a light embedding, a head of any weight."""
    block = random.uniform(0.5, 2.0)
    uneven = random.random() < 0.5
    forward = [block * (random.uniform(0.3, 3.0) if uneven else 1.0) for _ in range(layers)]
    forward[0] = block * random.uniform(0.0, 0.5)
    forward[-1] = block * random.uniform(0.2, 4.0)
    ratio = random.uniform(1.0, 3.0)
    backward = [own * ratio * (random.uniform(0.7, 1.3) if uneven else 1.0) for own in forward]
    return costs_of(
        forward,
        backward,
        input_half=[own * (random.uniform(0.3, 0.7) if uneven else 0.5) for own in backward],
        norm=[random.uniform(0.0, 0.3) for _ in range(layers)],
        optimizer=[random.uniform(0.0, 2.0) for _ in range(layers)],
        link=LinkCost(random.uniform(0.0, 0.3), random.uniform(50.0, 500.0)) if with_link else None,
        reduce_s=random.uniform(0.0, 0.5) if with_link else 0.0,
    )


def random_model(random: Random, layers: int) -> Model:
    """A model whose layers hold bytes of any kind."""
    output = random.randint(1, 60)
    saved = [output + random.randint(0, 300) for _ in range(layers)]
    return model_of(
        layers,
        parameter_bytes=[4 * random.randint(0, 400) for _ in range(layers)],
        saved_bytes=saved,
        pending_bytes=[random.randint(0, 2 * own) for own in saved],
        passing_bytes=[random.randint(0, 400) for _ in range(layers)],
        output_bytes=output,
    )


def cluster_of(devices: int, memory_bytes: int = 2**40) -> Cluster:
    """Equal made-up devices."""
    return Cluster(
        "made-up", Device("made-up", memory_bytes, 1e9, 0.5, 1e9, 1e-6, "a test"), devices, 1, devices, False
    )


def equal_stages(stages: int, forward_s: float, backward_s: float) -> tuple[StageCost, ...]:
    """Stages that all cost the same; the halves of a backward are equal."""
    return (StageCost(forward_s, backward_s, backward_s / 2, backward_s / 2),) * stages


def boundary_memory(stages: int, output_bytes: int) -> tuple[StageMemory, ...]:
    """Stages that hold nothing but what crosses to the next one."""
    return tuple(
        StageMemory(0, 0, 0, 0, output_bytes if stage else 0, output_bytes if stage < stages - 1 else 0, 0, 0)
        for stage in range(stages)
    )


def program_of(text: str, stage_rank: tuple[int, ...], microbatches: int) -> Program:
    """A program as a person writes it, a line for each rank."""
    return Program(stage_rank, microbatches, parse_ranks(text))


def hardware_of(
    program: Program,
    stages: Sequence[StageCost],
    links: LinkCost | Links | None = None,
    output_bytes: int = 0,
    **more: Any,
) -> Hardware:
    """Hardware that runs these stages; transfers and updates are free where nothing else is said."""
    settings = {
        "ranks": [NO_RANK_COST] * len(program.ranks),
        "links": links or free_transfers(),
        "memory": boundary_memory(program.stages, output_bytes),
        **more,
    }
    return Hardware(stages, **settings)


def split_hardware(program: Program, split: Split, costs: Costs, model: Model, **more: Any) -> Hardware:
    """Hardware that runs `split`'s layers as the stages of `program`."""
    settings = {"links": costs.link, **more}
    return Hardware(
        stage_costs(costs, split),
        rank_costs(costs, split, program.stage_rank),
        memory=MemoryModel(model).stages(split),
        reduce_s=costs.reduce_s,
        **settings,
    )
