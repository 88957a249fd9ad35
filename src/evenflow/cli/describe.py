"""Show a model's layers: parameters, exact FLOPs and bytes of one microbatch, traced without allocating anything."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from evenflow.cli.options import add_dtype, add_json, add_model, add_shape, add_tp
from evenflow.errors import InputError
from evenflow.spec import DEFAULT_DTYPE

if TYPE_CHECKING:
    from evenflow.spec.architecture import Architecture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    add_model(parser)
    add_shape(parser)
    add_tp(parser)
    add_dtype(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Trace and print."""
    from evenflow.spec.presets import preset_of

    preset = preset_of(arguments.model)
    if preset is not None:
        return _run_preset(arguments, preset)
    from evenflow.cli.console import show, show_json
    from evenflow.draw import model_table
    from evenflow.files import model_json
    from evenflow.models import describe_model, find_model

    source = find_model(arguments.model)
    shape = arguments.micro_batch_size, arguments.seq_length
    model = describe_model(source, *shape, arguments.tp, arguments.dtype or DEFAULT_DTYPE)
    if arguments.json:
        show_json(model_json(model))
    else:
        show(model_table(model))
    return 0


def _run_preset(arguments: argparse.Namespace, preset: Architecture) -> int:
    """A preset's figures come from its dimensions: torch is not imported."""
    if arguments.tp != 1 or arguments.dtype is not None:
        given = f"--tp {arguments.tp}" if arguments.tp != 1 else f"--dtype {arguments.dtype}"
        raise InputError(
            f"{given}: {preset.name} is described by its dimensions alone, whole and in no type; without it this would "
            "work, and `evenflow plan` shares it out"
        )
    from evenflow.cli.console import show, show_json
    from evenflow.spec.described import preset_facts
    from evenflow.units import format_count, format_flops

    facts = preset_facts(preset, arguments.micro_batch_size, arguments.seq_length)
    if arguments.json:
        show_json(facts)
        return 0
    block = facts["layers"][-2]
    show(
        f"{facts['model']}: {format_count(facts['parameters'])} parameters, {len(facts['layers']) - 2} blocks of "
        f"{format_count(block['parameters'])}, forward {format_flops(facts['forward_flops'])} for "
        f"{facts['micro_batch_size']} x {facts['seq_length']} tokens (analytic; dimensions: {facts['source']})"
    )
    return 0
