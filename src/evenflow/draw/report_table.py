"""The report in a terminal: one headline, one line a rank, a few sentences."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from evenflow.draw.findings import blame_text, finding_lines
from evenflow.draw.scale import bytes_scale
from evenflow.draw.tables import costs_line, new_table, title
from evenflow.draw.words import error_text, shape_text
from evenflow.plan import Plan
from evenflow.timeline import Figure, Findings, Timeline, blames, critical_path, path_seconds
from evenflow.units import format_percent, format_seconds

_MOST_RANKS = 16  # lines of a table that is read in ten seconds


def report_table(plan: Plan, predicted: Timeline, measured: Timeline | None, findings: Findings) -> RenderableType:
    """Why the step takes as long as it does, and who waits for whom.

    Of more than 16 ranks the table has those that idle most; the page has all.
    """
    shown = measured or predicted
    gains = {own.rank: own.gain for own in findings.faster}
    memory = bytes_scale(own.peak_bytes for own in (*predicted.ranks, *shown.ranks))
    held = blames(shown)
    path = path_seconds(critical_path(shown), len(shown.ranks))
    total = sum(sum(own.values()) for own in path) or 1.0
    table = new_table(
        "rank",
        "busy\n%",
        "update\n%",
        "idle\n%",
        "<idle goes back to\n(% of the step)",
        "path\n%",
        "10% faster\nsaves %",
        f"memory\n{memory.unit}",
        *(["\npredicted"] if measured else []),
    )
    order = list(range(len(shown.ranks)))
    if len(order) > _MOST_RANKS:
        order = sorted(sorted(order, key=lambda rank: -shown.ranks[rank].idle_s)[:_MOST_RANKS])
    for rank in order:
        own = shown.ranks[rank]
        causes = [f"{blame_text(one, short=True)} {_percent(one.seconds, own.wall_s)}" for one in held[rank][:2]]
        table.add_row(
            str(rank),
            _percent(own.busy_s, own.wall_s),
            _percent(own.optimizer_s, own.wall_s),
            _percent(own.idle_s, own.wall_s),
            "\n".join(causes),
            _percent(sum(path[rank].values()), total),
            f"{(1 - 1 / (1 + gains[rank])) * 100:.1f}" if rank in gains else "-",
            memory.text(own.peak_bytes),
            *([memory.text(predicted.ranks[rank].peak_bytes)] if measured else []),
        )
    parts: list[RenderableType] = [title(plan.model, shape_text(plan)), _headline(plan, predicted, measured), table]
    if len(shown.ranks) > _MOST_RANKS:
        parts.append(Text(f"the {_MOST_RANKS} of {len(shown.ranks)} ranks that idle most; --html has all"))
    parts.append(Text())
    parts += [Text(f"- {line}", overflow="fold") for line in finding_lines(plan, shown, findings)]
    parts += [Text(), costs_line(plan)]
    return Group(*parts)


def _headline(plan: Plan, predicted: Timeline, measured: Timeline | None) -> Text:
    shown = measured or predicted
    head = Text(f"{shown.origin} step {format_seconds(shown.step_s)}", style="bold", overflow="fold")
    rest = f", idle {format_percent(shown.idle_fraction)}"
    if measured:
        off = error_text(Figure(predicted.step_s, measured.step_s))
        rest += (
            f"; predicted {format_seconds(predicted.step_s)} ({off}), idle {format_percent(predicted.idle_fraction)}"
        )
    if plan.bound.step_s:
        over = format_percent(shown.step_s / plan.bound.step_s - 1)
        rest += f"; bound {format_seconds(plan.bound.step_s)}, {over} above it"
    head.append(rest, style="not bold")
    return head


def _percent(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    return "<1" if 0.05 <= share < 1 else f"{share:.0f}"
