"""Train a model split over processes, here or under torchrun: plan, run, and hold prediction against measurement."""

from __future__ import annotations

import argparse

from evenflow.cli.options import (
    add_axes,
    add_batch,
    add_json,
    add_memory_limit,
    add_model,
    add_processes,
    add_recompute,
    add_schedule,
    add_stages_per_rank,
    count,
    path,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    add_model(parser)
    parser.add_argument("--data", type=path, required=True, metavar="PATH", help="a text file, or a folder of them")
    parser.add_argument(
        "--out", type=path, required=True, metavar="RUN", help="a new folder for the run, or with --resume the run's"
    )
    parser.add_argument("--steps", type=count, default=100, metavar="N", help="optimizer updates (default 100)")
    add_batch(parser, has_defaults=False)
    add_processes(parser)
    add_axes(parser)
    parser.add_argument("--plan", type=path, metavar="PLAN", help="follow this plan.json (default: profile and plan)")
    add_schedule(parser)
    add_recompute(parser)
    add_stages_per_rank(parser)
    parser.add_argument("--lr", type=float, default=3e-4, metavar="X", help="peak learning rate (default 3e-4)")
    parser.add_argument("--dtype", choices=["fp32"], default="fp32", help="training type (default fp32)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and order of samples (default 0)")
    add_memory_limit(parser)
    parser.add_argument(
        "--from-scratch", action="store_true", help="draw weights even where some lie beside the config"
    )
    parser.add_argument("--no-check", action="store_true", help="do not prove first that split equals whole")
    parser.add_argument("--resume", action="store_true", help="go on with the run in RUN, in this or another layout")
    parser.add_argument("--stop-at", type=count, metavar="N", help="save and stop after step N; --resume goes on")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train and print predicted against measured."""
    from evenflow.cli.console import TerminalProgress, show, show_json
    from evenflow.cli.figures import run_json
    from evenflow.draw import comparison_table, idle_table
    from evenflow.train import Job, serve, train

    job = Job(
        model=arguments.model,
        data=arguments.data,
        out=arguments.out,
        steps=arguments.steps,
        global_batch_size=arguments.global_batch_size,
        micro_batch_size=arguments.micro_batch_size,
        seq_length=arguments.seq_length,
        processes=arguments.processes,
        pp=arguments.pp,
        tp=arguments.tp,
        dp=arguments.dp,
        zero=arguments.zero,
        threads=arguments.threads,
        plan=arguments.plan,
        schedule=arguments.schedule,
        recompute=arguments.recompute,
        stages_per_rank=arguments.stages_per_rank,
        learning_rate=arguments.lr,
        seed=arguments.seed,
        memory_limit=arguments.memory_limit,
        from_scratch=arguments.from_scratch,
        check=not arguments.no_check,
        resume=arguments.resume,
        stop_at=arguments.stop_at,
    )
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
