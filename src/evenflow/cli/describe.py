"""Show a model's layers: parameters, exact FLOPs and bytes of one microbatch, traced without allocating anything."""

from __future__ import annotations

import argparse

from evenflow.cli.options import add_json, add_model, add_shape, add_tp


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    add_model(parser)
    add_shape(parser)
    add_tp(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Trace and print."""
    from evenflow.cli.console import show, show_json
    from evenflow.draw import model_table
    from evenflow.files import model_json
    from evenflow.models import describe_model, find_model

    source = find_model(arguments.model)
    model = describe_model(source, arguments.micro_batch_size, arguments.seq_length, arguments.tp)
    if arguments.json:
        show_json(model_json(model))
    else:
        show(model_table(model))
    return 0
