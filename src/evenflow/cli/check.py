"""Prove on this machine, on a small copy of the architecture, that the split model equals the whole one."""

from __future__ import annotations

import argparse

from evenflow.cli.options import add_json, add_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    add_model(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare and print."""
    from evenflow.cli.console import show, show_json
    from evenflow.execute import check_split
    from evenflow.models import find_model

    result = check_split(find_model(arguments.model).config)
    if arguments.json:
        show_json(
            {
                "equal": True,
                "cuts": [list(cut) for cut in result.cuts],
                "worst_error": result.worst_error,
                "worst_tensor": result.worst_tensor,
            }
        )
    else:
        show(
            f"{arguments.model} splits: {len(result.cuts)} cuts of a small copy into 2 and 3 stages equal the whole "
            f"in loss and every gradient (worst relative error {result.worst_error:.1e}, {result.worst_tensor})"
        )
    return 0
