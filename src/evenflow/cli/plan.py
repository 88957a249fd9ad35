"""Cut a model over a cluster's devices and predict a step: time, idle, memory, and how far from the best possible."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from evenflow.cli.options import (
    add_axes,
    add_batch,
    add_dtype,
    add_json,
    add_memory_limit,
    add_model,
    add_recompute,
    add_schedule,
    add_stages_per_rank,
    add_trainer_axes,
    path,
)
from evenflow.errors import InputError

if TYPE_CHECKING:
    from evenflow.plan import Plan
    from evenflow.spec.architecture import Architecture


_FREE = "free"  # what the search decides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    add_model(parser)
    parser.add_argument(
        "--cluster",
        default="local",
        metavar="C",
        help="local, which is this machine (default), 8xA100-80GB, 4x8xH100-80GB (nodes x devices), or a TOML file",
    )
    add_batch(parser, preset=_FREE)
    parser.add_argument("--profile", type=path, metavar="F", help="measured costs; without it they come from FLOPs")
    add_schedule(parser, default=f"default 1f1b; for a preset: {_FREE}")
    add_recompute(parser, preset="auto")
    add_stages_per_rank(parser, preset=_FREE)
    add_memory_limit(parser)
    add_axes(parser, preset=_FREE)
    add_dtype(parser, preset="bf16")
    add_trainer_axes(parser)
    parser.add_argument("--out", type=path, metavar="F", help="write the plan here, for `train --plan`")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Plan, save and print."""
    from evenflow.spec.presets import preset_of

    preset = preset_of(arguments.model)
    plan = _plan_model(arguments) if preset is None else _plan_preset(arguments, preset)
    if arguments.out:
        from evenflow.files import save_plan

        save_plan(plan, arguments.out)
    if arguments.json:
        from evenflow.cli.stdout import show_json
        from evenflow.files import plan_json

        show_json(plan_json(plan))
    else:
        from evenflow.cli.console import show
        from evenflow.draw import plan_table

        show(plan_table(plan))
    return 0


def _plan_preset(arguments: argparse.Namespace, preset: Architecture) -> Plan:
    """A preset is planned from its dimensions, or as its ranks were rehearsed: torch is not imported."""
    from evenflow.files import load_profile
    from evenflow.files.cluster import read_cluster
    from evenflow.search.layouts import LayoutRequest, Pins, plan_layout
    from evenflow.spec.trainers import OURS

    names = ("pp", "tp", "dp", "cp", "ep", "stages_per_rank", "schedule", "micro_batch_size", "zero")
    return plan_layout(
        LayoutRequest(
            preset,
            read_cluster(arguments.cluster),
            arguments.global_batch_size,
            arguments.seq_length,
            arguments.trainer or OURS,
            Pins(**{name: getattr(arguments, name) for name in names}),
            arguments.recompute or "auto",
            arguments.memory_limit,
            arguments.dtype,
            load_profile(arguments.profile) if arguments.profile else None,
        )
    )


def _plan_model(arguments: argparse.Namespace) -> Plan:
    """A model that can be traced is planned from its layers, measured or by their FLOPs."""
    from evenflow.files import load_profile
    from evenflow.files.cluster import read_cluster
    from evenflow.plan import check_zero
    from evenflow.spec.trainers import OURS, find_trainer

    trainer = find_trainer(arguments.trainer or OURS)
    for name in ("cp", "ep"):
        if (size := getattr(arguments, name) or 1) > 1 and arguments.profile:
            raise InputError(
                f"--profile holds layers that were timed with whole sequences and all experts, and --{name} is {size}; "
                "no --profile, on a cluster of the catalogue's devices, would do"
            )
    if trainer.name != OURS:
        raise InputError(
            f"--for {trainer.name} is planned for presets, such as llama-3.1-405b: the layers of {arguments.model} are "
            f"counted as evenflow runs them; a plan without --for, given to `evenflow export --to {trainer.name}`, "
            "would do"
        )
    profile = load_profile(arguments.profile) if arguments.profile else None
    read_cluster(arguments.cluster)  # before torch is imported: what is wrong with either is said at once

    from evenflow.models import find_model
    from evenflow.train import choose_cluster, make_batch, plan_model

    cluster, axes = choose_cluster(
        arguments.cluster,
        arguments.pp,
        arguments.tp,
        arguments.dp,
        profile.threads if profile else None,
        arguments.cp,
        arguments.ep,
    )
    batch = make_batch(arguments.global_batch_size, arguments.micro_batch_size, arguments.seq_length, axes)
    _, plan, _ = plan_model(
        find_model(arguments.model),
        cluster,
        batch,
        arguments.schedule,
        arguments.memory_limit,
        profile,
        arguments.stages_per_rank,
        arguments.recompute,
        axes,
        check_zero(arguments.zero or 0),
        arguments.dtype,
    )
    return plan
