"""Train a model split over processes, here or under torchrun: plan, run, and hold prediction against measurement."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from evenflow.cli.job_options import add_job_options, read_job_options
from evenflow.cli.options import add_json
from evenflow.files import job_schema, job_settings, job_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    add_job_options(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train and print predicted against measured."""
    if arguments.print_schema:
        print(json.dumps(job_schema(), indent=2))
        return 0
    part = read_job_options(arguments)
    if arguments.print_config:
        print(job_text(part), end="")
        return 0
    settings = job_settings(part)  # before torch is imported: what is missing is said at once
    _check_plan(settings["plan"])

    from evenflow.cli.console import TerminalProgress, show, show_json
    from evenflow.cli.figures import run_json
    from evenflow.draw import comparison_table, idle_table
    from evenflow.train import Job, serve, train

    job = Job(**settings)
    served = serve()  # a worker that torchrun started beside the leading one
    if served is not None:
        return served
    result = train(job, TerminalProgress())
    if arguments.json:
        show_json(run_json(result))
        return 0
    show(comparison_table(result.comparison), idle_table(result.measured))
    show(f"model: {result.out / 'model'}   report: {result.out / 'report.html'}")
    return 0


def _check_plan(file: Path | None) -> None:
    """What is wrong with a plan by itself is said before torch is imported too.

    Raises:
        InputError: what is.
    """
    from evenflow.files import load_plan
    from evenflow.launch import notice_torchrun

    # Under torchrun the worker that leads reads it once the others can hear what is wrong; they need not have it.
    if file is not None and notice_torchrun(os.environ) is None:
        load_plan(file)
