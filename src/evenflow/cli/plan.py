"""Cut a model over a cluster's devices and predict a step: time, idle, memory, and how far from the best possible."""

from __future__ import annotations

import argparse

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
    path,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    add_model(parser)
    parser.add_argument(
        "--cluster",
        default="local",
        metavar="C",
        help="local, which is this machine (default), 8xA100-80GB, or 4x8xH100-80GB: nodes x devices",
    )
    add_batch(parser)
    parser.add_argument("--profile", type=path, metavar="F", help="measured costs; without it they come from FLOPs")
    add_schedule(parser)
    add_recompute(parser)
    add_stages_per_rank(parser)
    add_memory_limit(parser)
    add_axes(parser)
    add_dtype(parser)
    parser.add_argument("--out", type=path, metavar="F", help="write the plan here, for `train --plan`")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Plan, save and print."""
    from evenflow.cli.console import show, show_json
    from evenflow.draw import plan_table
    from evenflow.files import load_profile, plan_json, save_plan
    from evenflow.models import find_model
    from evenflow.plan import check_zero
    from evenflow.train import choose_cluster, make_batch, plan_model

    profile = load_profile(arguments.profile) if arguments.profile else None
    cluster, axes = choose_cluster(
        arguments.cluster, arguments.pp, arguments.tp, arguments.dp, profile.threads if profile else None
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
    if arguments.out:
        save_plan(plan, arguments.out)
    if arguments.json:
        show_json(plan_json(plan))
    else:
        show(plan_table(plan))
    return 0
