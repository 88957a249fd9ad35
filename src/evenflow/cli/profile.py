"""Time a model's layers on this machine, with as many busy processes as the run will have."""

from __future__ import annotations

import argparse

from evenflow.cli.options import add_json, add_model, add_processes, add_shape, add_tp, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    add_model(parser)
    add_processes(parser)
    add_shape(parser)
    add_tp(parser)
    parser.add_argument("--out", type=path, metavar="F", help="write the profile here, for `plan --profile`")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, save and print."""
    from evenflow.cli.console import show, show_json
    from evenflow.draw import profile_table
    from evenflow.files import profile_json, save_profile
    from evenflow.measure import measure_profile
    from evenflow.models import describe_model, find_model
    from evenflow.spec.cluster import local_cluster

    source = find_model(arguments.model)
    model = describe_model(source, arguments.micro_batch_size, arguments.seq_length, arguments.tp)
    profile = measure_profile(source, model, local_cluster(arguments.processes, arguments.threads))
    if arguments.out:
        save_profile(profile, arguments.out)
    if arguments.json:
        show_json(profile_json(profile))
    else:
        show(profile_table(profile, model))
    return 0
