"""Why a run or a plan is as fast as it is: who waits for whom, predicted against measured, and what to change."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from evenflow.cli.options import add_json, path
from evenflow.errors import InputError

if TYPE_CHECKING:
    from evenflow.files import StepTimelines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("run", type=path, metavar="RUN|PLAN", help="a run's folder, or a plan.json")
    parser.add_argument("--html", type=path, metavar="F", help="write one self-contained page here")
    parser.add_argument("--svg", type=path, metavar="F", help="write the timeline as a picture here")
    parser.add_argument("--png", type=path, metavar="F", help="the same as PNG (needs matplotlib)")
    parser.add_argument(
        "--trace",
        type=path,
        metavar="F",
        help="write the timeline as a trace for ui.perfetto.dev or chrome://tracing here",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read, print, and write what was asked for."""
    from evenflow.cli.console import show, show_json
    from evenflow.cli.figures import comparison_json, why_json
    from evenflow.draw import report_html, report_table, timeline_png, timeline_svg, timeline_trace
    from evenflow.files import load_metrics, load_plan, plan_json, write_bytes, write_text
    from evenflow.search import find_out, plan_timeline
    from evenflow.timeline import compare

    folder = arguments.run if arguments.run.is_dir() else None
    plan = load_plan(folder / "plan.json" if folder else arguments.run)
    predicted, measured = plan_timeline(plan), None
    if folder:
        timelines = _run_timelines(folder)
        predicted, measured = timelines.predicted, timelines.measured
        if len(predicted.ranks) != len(plan.ranks):
            raise InputError(
                f"{folder / 'timeline.json'}: has {len(predicted.ranks)} ranks, {folder / 'plan.json'} has "
                f"{len(plan.ranks)}; the two files of one run would do"
            )
    metrics = load_metrics(folder / "metrics.jsonl") if folder else ()
    shown = measured or predicted
    findings = find_out(plan, predicted, measured, with_schedules=arguments.html is not None)
    drawn = [predicted, measured] if measured else [predicted]
    if arguments.html:
        write_text(arguments.html, report_html(plan, predicted, measured, metrics, findings))
    if arguments.svg:
        write_text(arguments.svg, timeline_svg(drawn))
    if arguments.png:
        write_bytes(arguments.png, timeline_png(drawn))
    if arguments.trace:
        write_text(arguments.trace, timeline_trace(drawn, plan.model))
    if arguments.json:
        comparison = comparison_json(compare(predicted, measured)) if measured else None
        why = why_json(plan, shown, findings)
        show_json({"plan": plan_json(plan), "comparison": comparison, "why": why, "costs": plan.costs})
    else:
        show(report_table(plan, predicted, measured, findings))
    return 0


def _run_timelines(folder: Path) -> StepTimelines:
    from evenflow.files import load_timelines

    file = folder / "timeline.json"
    if not file.exists():
        raise InputError(
            f"{folder}: there is no timeline.json, which a run writes when it ends; a run that has ended would do, "
            f"or {folder / 'plan.json'} for what was predicted"
        )
    return load_timelines(file)
