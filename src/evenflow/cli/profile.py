"""Time a model's layers on this machine, with as many busy processes as the run will have."""

from __future__ import annotations

import argparse

from evenflow.cli.options import add_dtype, add_json, add_processes, add_shape, add_tp, path
from evenflow.errors import InputError
from evenflow.spec import DEFAULT_DTYPE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a Hugging Face model directory, its config.json, or a hub id"
    )
    parser.add_argument(
        "--device",
        action="store_true",
        help="measure a catalogue entry of this machine instead: products, memory, link",
    )
    add_processes(parser)
    add_shape(parser)
    add_tp(parser)
    add_dtype(parser)
    parser.add_argument(
        "--out", type=path, metavar="F", help="write the profile here, for `plan --profile`; or the device"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, save and print."""
    if arguments.device:
        return _measure_device(arguments)
    if arguments.model is None:
        raise InputError("what is to be measured is missing; a MODEL, or --device for this machine, would do")
    from evenflow.cli.console import show, show_json
    from evenflow.draw import profile_table
    from evenflow.files import profile_json, save_profile
    from evenflow.measure import measure_profile
    from evenflow.models import describe_model, find_model
    from evenflow.spec.cluster import local_cluster

    source = find_model(arguments.model)
    shape = arguments.micro_batch_size, arguments.seq_length
    model = describe_model(source, *shape, arguments.tp, arguments.dtype or DEFAULT_DTYPE)
    profile = measure_profile(source, model, local_cluster(arguments.processes, arguments.threads))
    if arguments.out:
        save_profile(profile, arguments.out)
    if arguments.json:
        show_json(profile_json(profile))
    else:
        show(profile_table(profile, model))
    return 0


def _measure_device(arguments: argparse.Namespace) -> int:
    from evenflow.cli.console import show, show_json
    from evenflow.draw import device_table
    from evenflow.files import device_json, save_device
    from evenflow.measure import measure_device
    from evenflow.spec.cluster import local_cluster

    if arguments.model is not None:
        raise InputError(f"--device measures this machine, whatever the model; without {arguments.model} it would do")
    device = measure_device(local_cluster(arguments.processes, arguments.threads))
    if arguments.out:
        save_device(device, arguments.out)
    if arguments.json:
        show_json(device_json(device))
    else:
        show(device_table(device))
    return 0
