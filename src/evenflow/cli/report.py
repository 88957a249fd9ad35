"""Why a run or a plan is as fast as it is: predicted against measured, and where each rank's time went."""

from __future__ import annotations

import argparse

from evenflow.cli.options import add_json, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("run", type=path, metavar="RUN|PLAN", help="a run's folder, or a plan.json")
    parser.add_argument("--html", type=path, metavar="F", help="write one self-contained page here")
    parser.add_argument("--svg", type=path, metavar="F", help="write the timeline as a picture here")
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
    from evenflow.cli.figures import comparison_json
    from evenflow.draw import comparison_table, idle_table, plan_table, report_html, timeline_svg, timeline_trace
    from evenflow.files import load_metrics, load_plan, load_timelines, plan_json, write_text
    from evenflow.search import plan_timeline
    from evenflow.timeline import compare

    folder = arguments.run if arguments.run.is_dir() else None
    plan = load_plan(folder / "plan.json" if folder else arguments.run)
    predicted, measured = plan_timeline(plan), None
    if folder:
        timelines = load_timelines(folder / "timeline.json")
        predicted, measured = timelines.predicted, timelines.measured
    metrics = load_metrics(folder / "metrics.jsonl") if folder else ()
    comparison = compare(predicted, measured) if measured else None
    drawn = [predicted, measured] if measured else [predicted]
    if arguments.html:
        write_text(arguments.html, report_html(plan, predicted, measured, metrics))
    if arguments.svg:
        write_text(arguments.svg, timeline_svg(drawn))
    if arguments.trace:
        write_text(arguments.trace, timeline_trace(drawn, plan.model))
    if arguments.json:
        show_json({"plan": plan_json(plan), "comparison": comparison_json(comparison) if comparison else None})
        return 0
    show(plan_table(plan))
    if comparison:
        show(comparison_table(comparison))
    show(idle_table(measured or predicted))
    return 0
