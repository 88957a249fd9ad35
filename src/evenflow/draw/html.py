"""The report: one HTML file without network that says what a step cost, where it idled and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from evenflow.draw.boxes import drawn_kinds, most_stages
from evenflow.draw.curve import curve_svg
from evenflow.draw.island import timeline_island
from evenflow.draw.page_tables import idle_section, memory_section, stage_section
from evenflow.draw.page_why import advice_section, blame_section, layers_section, path_section, schedules_section
from evenflow.draw.words import error_text, held_out_text, origins_text, points_text, shape_text
from evenflow.files import StepMetrics
from evenflow.plan import Plan
from evenflow.spec.presets import is_preset
from evenflow.timeline import Figure, Findings, Timeline, compare
from evenflow.units import format_bytes, format_count, format_percent, format_seconds


def report_html(
    plan: Plan,
    predicted: Timeline,
    measured: Timeline | None,
    metrics: Sequence[StepMetrics],
    findings: Findings | None = None,
) -> str:
    """Draw a plan, and what came of it where it ran, as one page.

    Args:
        plan: the plan.
        predicted: the step as the simulator has it.
        measured: a step as it ran, if it ran.
        metrics: the run's steps, or none.
        findings: what a simulator found out about the step, if it was asked.

    Raises:
        ProgramError: the two timelines are not of the same program.
    """
    timelines = [predicted] if measured is None else [predicted, measured]
    shown = timelines[-1]
    findings = findings or Findings()
    sections = [
        advice_section(plan, shown, findings),
        idle_section(shown),
        blame_section(shown),
        path_section(shown, findings),
        _memory_plot(measured),
        memory_section(predicted, measured, plan.memory_limit),
        schedules_section(plan, findings),
        stage_section(plan),
        layers_section(plan),
        *([_curves(plan, metrics)] if metrics else []),
        _notes(plan),
    ]
    # One pass over the template: what a user's text holds is never taken for a place to fill.
    return Template(_asset("report.html")).substitute(
        title=escape(f"{plan.model}: evenflow report"),
        style=_asset("report.css"),
        model=escape(plan.model),
        shape=escape(shape_text(plan)),
        cards=_cards(plan, predicted, measured),
        legend=page_legend(timelines),
        summary=escape(_summary(timelines)),
        sections="\n".join(sections),
        footer=escape(_footer(plan)),
        data=timeline_island(timelines, plan.memory_limit),
        script=_asset("report.js"),
    )


def _asset(name: str) -> str:
    return (files("evenflow.draw") / "assets" / name).read_text(encoding="utf-8")


def _summary(timelines: Sequence[Timeline]) -> str:
    figures = "; ".join(
        f"{own.origin} step {format_seconds(own.step_s)}, idle {format_percent(own.idle_fraction)}" for own in timelines
    )
    return f"A lane for each of {len(timelines[0].ranks)} ranks with its actions over time. {figures}"


def _memory_plot(measured: Timeline | None) -> str:
    """Where the script draws memory over time, and what the two kinds of it have in them."""
    note = ""
    if measured is not None and any(own.memory for own in measured.ranks):
        note = (
            '<p class="quiet small">Predicted are tensors alone. Measured is what each process held above what it held '
            "before it built its stage, looked at after each action: libraries' working space is in it too, and freed "
            "memory that its allocator keeps.</p>\n"
        )
    return (
        '<section hidden>\n<h2>Memory over time</h2>\n<div class="plot"><canvas id="memory" role="img" '
        'aria-label="Bytes that each rank holds during the step; the table of peak memory has the figures"></canvas>'
        f'<div id="memory-tip" class="tip" hidden></div></div>\n{note}</section>'
    )


def page_legend(timelines: Sequence[Timeline]) -> str:
    """What the colours of the lanes mean, of those that occur."""
    entries = [*drawn_kinds(timelines), ("idle", "idle"), ("path", "critical path")]
    if most_stages(timelines) > 1:
        entries.append(("bands", "first to last stage of a rank"))
    return "\n".join(
        f'<span class="entry"><span class="swatch {kind}"></span>{words}</span>' for kind, words in entries
    )


def _cards(plan: Plan, predicted: Timeline, measured: Timeline | None) -> str:
    """The main figures: measured in large with predicted below, or predicted alone."""
    tokens = plan.global_batch_size * plan.seq_length
    ours, theirs = predicted, measured if measured is not None else predicted
    held = compare(ours, theirs)
    peak = Figure(*(max(rank.peak_bytes for rank in own.ranks) for own in (ours, theirs)))
    rate = Figure(tokens / ours.step_s, tokens / theirs.step_s)
    idle = held.idle_fraction
    ran = measured is not None
    cards = [
        _card("step", held.step_s, format_seconds, ran),
        _card("tokens/s", rate, format_count, ran),
        _card("idle", idle, format_percent, ran, points_text),
        _card("imbalance", held.imbalance, "{:.3f}".format, ran),
        _card("peak memory", peak, format_bytes, ran),
    ]
    bound = plan.bound.step_s
    if bound:
        over = format_percent(theirs.step_s / bound - 1)
        cards.append(
            f'<div class="card">above the bound<b>{over}</b>'
            f'<p class="quiet small">bound {format_seconds(bound)}</p></div>'
        )
    return "\n".join(cards)


def _card(
    name: str,
    figure: Figure,
    text: Callable[[float], str],
    ran: bool,
    off: Callable[[Figure], str] = error_text,
) -> str:
    below = [f"predicted {text(figure.predicted)},", off(figure)] if ran else ["predicted"]
    spans = " ".join(f"<span>{escape(part)}</span>" for part in below)
    return f'<div class="card">{name}<b>{escape(text(figure.measured))}</b><p class="quiet small">{spans}</p></div>'


def _curves(plan: Plan, metrics: Sequence[StepMetrics]) -> str:
    last = metrics[-1]
    loss = curve_svg([(own.step, own.loss) for own in metrics], "loss", lambda value: f"{value:.4g}")
    rate = curve_svg(
        [(own.step, own.tokens_per_s) for own in metrics],
        "tokens/s",
        format_count,
        reference=plan.predicted.tokens_per_s,
    )
    found = [own for own in metrics if own.eval_loss is not None]
    held_out = ""
    if found:
        points = [(own.step, own.eval_loss) for own in found if own.eval_loss is not None]
        curve = curve_svg(points, "held-out loss", lambda value: f"{value:.4g}")
        held_out = (
            f"<div><h3>after training steps <span class=quiet>{held_out_text(found[-1])}</span></h3>{curve}</div>\n"
        )
    return (
        f'<section>\n<h2>The run, {len(metrics)} steps</h2>\n<div class="curves">\n'
        f"<div><h3>loss <span class=quiet>last {last.loss:.4g}</span></h3>{loss}</div>\n{held_out}"
        f"<div><h3>tokens/s <span class=quiet>last {format_count(last.tokens_per_s)}, dashed: predicted "
        f"{format_count(plan.predicted.tokens_per_s)}</span></h3>{rate}</div>\n</div>\n</section>"
    )


def _notes(plan: Plan) -> str:
    considered = "1 plan was" if plan.search.considered == 1 else f"{plan.search.considered} plans were"
    holds_for = "every contiguous split of these layers and every schedule"
    if is_preset(plan.source):
        holds_for = "every layout that was searched, with its trainer's schedules and the axes that were fixed"
    lines = [
        f"where the figures come from: {origins_text(plan)}",
        f"the bound, {format_seconds(plan.bound.step_s)}, holds for {holds_for}; the plan's "
        f"predicted step is {format_percent(plan.bound.gap)} above it",
        f"{considered} simulated in {format_seconds(plan.search.seconds)}",
    ]
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<section>\n<h2>Notes</h2>\n<ul>\n{items}\n</ul>\n</section>"


def _footer(plan: Plan) -> str:
    return f"model fingerprint {plan.fingerprint}; predicted MFU {format_percent(plan.predicted.mfu)}"
