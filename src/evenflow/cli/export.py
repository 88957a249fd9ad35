"""Write a plan as another trainer's own configuration: Megatron-LM, torchtitan, DeepSpeed or PyTorch's pipelining."""

from __future__ import annotations

import argparse
import sys

from evenflow.cli.options import add_json, path
from evenflow.errors import InputError
from evenflow.export import TARGETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("plan", type=path, metavar="PLAN", help="a plan.json, as `plan --out` writes it")
    parser.add_argument("--to", required=True, choices=list(TARGETS), help="the trainer")
    parser.add_argument("--out", type=path, metavar="DIR", help="write the files here; else they are printed")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Export, and write or print."""
    from evenflow.cli.console import show, show_json
    from evenflow.export import export_plan
    from evenflow.files import load_plan, write_text

    export = export_plan(load_plan(arguments.plan), arguments.to)
    if arguments.out:
        try:
            arguments.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {arguments.out}: cannot be made a folder: {error.strerror}") from None
        for name, text in export.files.items():
            write_text(arguments.out / name, text)
    if arguments.json:
        show_json({"target": export.target, "files": export.files, "notes": list(export.notes)})
        return 0
    if arguments.out:
        show(*(f"written: {arguments.out / name}" for name in export.files))
    else:
        several = len(export.files) > 1
        for name, text in export.files.items():
            sys.stdout.write((f"# -------- {name}\n" if several else "") + text)
    for note in export.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0
