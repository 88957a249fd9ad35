"""Prove on this machine, on a small copy of the architecture, that the split model equals the whole one."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from evenflow.cli.options import add_json, add_model, count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    add_model(parser)
    parser.add_argument("--tp", type=count, metavar="N", help="also that it can be shared out over tp processes")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare and print."""
    from evenflow.cli.console import show, show_json
    from evenflow.execute import check_shares, check_split
    from evenflow.models import check_tensor_parallel, find_model

    config, tp = find_model(arguments.model).config, arguments.tp or 1
    check_tensor_parallel(config, tp)
    result = check_split(config)
    shares = check_shares(config, tp) if tp > 1 else None
    if arguments.json:
        facts: dict[str, Any] = {
            "equal": True,
            "cuts": [list(cut) for cut in result.cuts],
            "worst_error": result.worst_error,
            "worst_tensor": result.worst_tensor,
        }
        if shares is not None:
            facts["shared"] = asdict(shares)
        show_json(facts)
    else:
        show(
            f"{arguments.model} splits: {len(result.cuts)} cuts of a small copy into 2 and 3 stages equal the whole, "
            "and that plain transformers, in loss and every gradient "
            f"(worst relative error {result.worst_error:.1e}, {result.worst_tensor})"
        )
        if shares is not None:
            show(
                f"{arguments.model} can be shared out over --tp {tp}: a small copy, {shares.cut} of its "
                f"{shares.parameters} parameters cut over {shares.size}, equals the whole "
                f"(worst relative error {shares.worst_error:.1e}, {shares.worst_tensor})"
            )
    return 0
