"""Write the script that starts a job's plan, one process a device: with torchrun, or as a batch job of Slurm."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from evenflow.cli.options import add_json, count, path
from evenflow.errors import InputError
from evenflow.launch.script import TARGETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument(
        "job", type=path, metavar="JOB", help="a job.toml with a plan, as `train --print-config` writes"
    )
    parser.add_argument("--to", required=True, choices=TARGETS, help="what starts the processes")
    parser.add_argument("--time", metavar="T", help="of slurm: the limit, [DAYS-]HH:MM:SS (default 24:00:00)")
    parser.add_argument(
        "--per-node", type=count, metavar="N", help="devices of a node (default: as the plan's cluster says)"
    )
    parser.add_argument("--out", type=path, metavar="F", help="write the script here; else it is printed")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write or print the script."""
    from evenflow.cli.console import show, show_json
    from evenflow.files import job_settings, load_job, load_plan, write_text
    from evenflow.launch.script import Start, slurm_script, torchrun_script
    from evenflow.launch.spread import spread_plan

    if arguments.time is not None and arguments.to != "slurm":
        raise InputError("--time is for --to slurm; torchrun has no limit of time")
    part = load_job(arguments.job)
    settings = job_settings(part)
    if part.plan is None:
        raise InputError(
            f"{arguments.job}: has no plan, which says how many nodes and devices there are; one by "
            '`evenflow plan ... --out plan.json`, and plan = "plan.json" in it, would do'
        )
    plan = load_plan(settings["plan"])
    spread = spread_plan(plan, arguments.per_node)
    if part.processes not in (None, plan.axes.processes):
        raise InputError(
            f"{arguments.job}: processes is {part.processes}, and its plan has {plan.axes.processes}; without "
            "processes it would do"
        )
    python = Path(sys.executable)
    start = Start(arguments.job.resolve(), settings["out"], Path.cwd(), python, spread, settings["restarts"])
    script = slurm_script(start, arguments.time or "24:00:00") if arguments.to == "slurm" else torchrun_script(start)
    if arguments.out:
        write_text(arguments.out, script)
        arguments.out.chmod(0o777 & ~_umask())
    if arguments.json:
        facts = {"nodes": spread.nodes, "processes_per_node": spread.per_node, "stop_s": spread.stop_s}
        show_json({"target": arguments.to, **facts, "script": script})
    elif arguments.out:
        how = f"sbatch {arguments.out}" if arguments.to == "slurm" else f"{arguments.out}"
        show(f"written: {arguments.out}; start it with: {how}")
    else:
        sys.stdout.write(script)
    if part.save_every is None:
        print(
            "note: the job has no save_every: a node that is lost takes all steps since the start with it",
            file=sys.stderr,
        )
    return 0


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
