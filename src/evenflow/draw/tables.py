"""Plans and timelines as terminal tables that a person reads in ten seconds, at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evenflow.draw.idle_rows import PARTS, idle_rows
from evenflow.draw.scale import Scale, bytes_scale, seconds_scale
from evenflow.draw.words import error_text, layers_text, origins_text, plain, points_text, shape_text
from evenflow.plan import Plan, RankPlan
from evenflow.timeline import Comparison, Figure, Timeline
from evenflow.units import format_bytes, format_count, format_percent, format_seconds

_STAGES_SHOWN = 16  # a row each; of more, where ranks have several, a row for each rank


def plan_table(plan: Plan) -> RenderableType:
    """Who holds what, what that costs each rank, and what the step is predicted to be."""
    stages, ranks = plan.stages, plan.ranks
    compute = seconds_scale([stage.cost.forward_s for stage in stages] + [stage.cost.backward_s for stage in stages])
    busy = seconds_scale(rank.busy_s for rank in ranks)
    memory = bytes_scale(rank.peak_bytes for rank in ranks)
    total = sum(rank.busy_s for rank in ranks)
    table = new_table(
        "rank",
        "<layers",
        f"forward\n{compute.unit}",
        f"backward\n{compute.unit}",
        f"busy\n{busy.unit}",
        "share",
        f"memory\n{memory.unit}",
    )
    busiest = max(range(len(ranks)), key=lambda rank: ranks[rank].busy_s)
    summed = len(stages) > _STAGES_SHOWN and len(stages) > len(ranks)
    for rank in ranks:
        if summed:
            table.add_row(
                *_summed_row(plan, rank, total, (compute, busy, memory)), style="bold" * (rank.rank == busiest)
            )
            continue
        for place, index in enumerate(rank.stages):
            stage = stages[index]
            own = [
                compute.text(stage.cost.forward_s),
                compute.text(stage.cost.backward_s),
                *(
                    [busy.text(rank.busy_s), _share(rank.busy_s, total), memory.text(rank.peak_bytes)]
                    if place == 0
                    else [""] * 3
                ),
            ]
            name = str(rank.rank) if place == 0 else ""
            style = "bold" if rank.rank == busiest and len(ranks) > 1 else ""
            table.add_row(name, layers_text(stage.layers, len(plan.layer_names)), *own, style=style)
    return Group(title(plan.model, shape_text(plan)), table, Text(), _plan_lines(plan))


def _summed_row(plan: Plan, rank: RankPlan, total: float, scales: tuple[Scale, Scale, Scale]) -> list[str]:
    """A rank with all its stages in one row."""
    compute, busy, memory = scales
    held = [plan.stages[index] for index in rank.stages]
    layers = sum(len(stage.layers) for stage in held)
    return [
        str(rank.rank),
        f"{layers_text(held[0].layers, len(plan.layer_names))} ... ({layers} in {len(held)} stages)",
        compute.text(sum(stage.cost.forward_s for stage in held)),
        compute.text(sum(stage.cost.backward_s for stage in held)),
        busy.text(rank.busy_s),
        _share(rank.busy_s, total),
        memory.text(rank.peak_bytes),
    ]


def costs_line(plan: Plan) -> Table:
    """Whether the figures above were measured, are analytic or are assumed: one line, under whatever is predicted."""
    return _named_lines([_costs_entry(plan)])


def _costs_entry(plan: Plan) -> tuple[str, str]:
    return "costs", origins_text(plan)


def _named_lines(entries: Iterable[tuple[str, str]]) -> Table:
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column(overflow="fold")
    for name, text in entries:
        lines.add_row(name, Text(text))
    return lines


def _plan_lines(plan: Plan) -> Table:
    predicted, bound = plan.predicted, plan.bound
    even = f"the busiest rank works {predicted.imbalance:.2f} times the mean"
    plans = "1 plan" if plan.search.considered == 1 else f"{plan.search.considered} plans"
    entries = [
        ("step", f"{format_seconds(predicted.step_s)}, {format_count(predicted.tokens_per_s)} tokens/s"),
        ("idle", f"{format_percent(predicted.idle_fraction)} of the ranks' time"),
        ("imbalance", f"{predicted.imbalance:.3f}: {even}"),
        ("MFU", format_percent(predicted.mfu)),
        ("memory", _memory_text(plan)),
        ("bound", f"{format_seconds(bound.step_s)} at the least; the step is {_above(bound.gap)}"),
        ("search", f"{plans} simulated in {format_seconds(plan.search.seconds)}"),
        _costs_entry(plan),
        *(("note", plain(note)) for note in plan.notes),
    ]
    return _named_lines(entries)


def _memory_text(plan: Plan) -> str:
    """What the fullest rank's tensors take, and beside it what its device gives away for them.

    `costs` says of memory what holds of the tensors: the allocator's margin and the context are assumed all the same.
    """
    worst = plan.worst_rank
    reserved = plan.reserved_bytes(worst)
    where = f"on rank {worst.rank}" + (", the fullest" if len(plan.ranks) > 1 else "")
    if reserved == worst.peak_bytes:
        return f"{format_bytes(worst.peak_bytes)} {where}"
    return f"{format_bytes(worst.peak_bytes)} allocated {where}; {format_bytes(reserved)} reserved (margin assumed)"


def schedules_table(plan: Plan, rows: Sequence[tuple[str, Plan | None, str]]) -> RenderableType:
    """The same layers and ranks under each schedule: its name, the plan that it makes (or None), and why not."""
    plans = [own for _, own, _ in rows if own is not None]
    step = seconds_scale(own.predicted.step_s for own in plans)
    memory = bytes_scale(max(rank.peak_bytes for rank in own.ranks) for own in plans)
    fastest = min((own.predicted.step_s for own in plans), default=0.0)
    table = new_table(
        "<schedule",
        "stages\na rank",
        f"step\n{step.unit}",
        "above\nfastest",
        "idle",
        f"memory\n{memory.unit}",
        "above\nbound",
        "<",
    )
    reasons: list[Text] = []
    for name, own, reason in rows:
        if own is None:
            table.add_row(name, *["-"] * 6, style="dim")
            reasons.append(Text.assemble((name, "bold"), f": {reason}"))
            continue
        seconds = own.predicted.step_s
        table.add_row(
            name,
            f"{len(own.stages) / len(own.ranks):g}",
            step.text(seconds),
            f"+{format_percent(seconds / fastest - 1)}" if seconds > fastest else "",
            format_percent(own.predicted.idle_fraction),
            memory.text(max(rank.peak_bytes for rank in own.ranks)),
            format_percent(own.bound.gap),
            "this plan" if name == plan.schedule else "",
            style="bold" if seconds == fastest else "",
        )
    return Group(title(plan.model, shape_text(plan)), table, *reasons, Text(), costs_line(plan))


def comparison_table(comparison: Comparison) -> RenderableType:
    """Predicted against measured: the step as a whole, then each rank."""
    whole = new_table("<", "predicted", "measured", "error")
    step, idle = comparison.step_s, comparison.idle_fraction
    scale = seconds_scale([step.predicted, step.measured])
    whole.add_row("step", scale.full(step.predicted), scale.full(step.measured), error_text(step))
    whole.add_row("idle", format_percent(idle.predicted), format_percent(idle.measured), points_text(idle))
    even = comparison.imbalance
    whole.add_row("imbalance", f"{even.predicted:.3f}", f"{even.measured:.3f}", error_text(even))

    busy = seconds_scale(_both(comparison.busy_s))
    memory = bytes_scale(_both(comparison.peak_bytes))
    ranks = new_table(
        "rank",
        f"busy {busy.unit}\npredicted",
        "\nmeasured",
        "\nerror",
        f"memory {memory.unit}\npredicted",
        "\nmeasured",
        "\nerror",
    )
    for rank, (seconds, held) in enumerate(zip(comparison.busy_s, comparison.peak_bytes, strict=True)):
        ranks.add_row(str(rank), *_figure(seconds, busy), *_figure(held, memory))
    return Group(whole, Text(), ranks)


def idle_table(timeline: Timeline) -> RenderableType:
    """Where each rank's step went: busy, optimizer, and idle by cause, in time and per cent."""
    scale = seconds_scale(rank.wall_s for rank in timeline.ranks)
    rows = idle_rows(timeline)
    unit = f"\n{scale.unit}    %"
    table = new_table("rank", *(name + unit for name in PARTS), "<waited\nmost for")
    for number, row in enumerate(rows):
        cells = (_with_percent(part, row.wall_s, scale) for part in row.parts)
        table.add_row(str(number), *cells, row.peer)
    if len(rows) > 1:
        means = [sum(row.parts[column] for row in rows) / len(rows) for column in range(len(PARTS))]
        cells = (_with_percent(mean, timeline.step_s, scale) for mean in means)
        table.add_section()
        table.add_row("mean", *cells, "", style="bold")
    head = Text(f"{timeline.origin} step {format_seconds(timeline.step_s)}", style="bold")
    head.append(f", idle {format_percent(timeline.idle_fraction)}", style="not bold")
    return Group(head, table)


def new_table(*headers: str) -> Table:
    """An empty table in our style: figures to the right; a header that begins with < is a column of words."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for header in headers:
        words = header.startswith("<")
        table.add_column(
            Text(header.removeprefix("<")),
            justify="left" if words else "right",
            no_wrap=not words,
            overflow="fold",
            vertical="top",
        )
    return table


def title(name: str, rest: str) -> Text:
    """A line above a table: what it is about, and what that is."""
    return Text.assemble((plain(name), "bold"), f"\n{rest}\n", overflow="fold")


def _both(figures: Sequence[Figure]) -> Iterable[float]:
    for figure in figures:
        yield figure.predicted
        yield figure.measured


def _figure(figure: Figure, scale: Scale) -> tuple[str, str, str]:
    return scale.text(figure.predicted), scale.text(figure.measured), error_text(figure)


def _share(part: float, total: float) -> str:
    return format_percent(part / total) if total else "-"


def _with_percent(part: float, whole: float, scale: Scale) -> str:
    """`12.3  45`, or `0.1  <1`: a figure and its rounded percentage, in columns of their own."""
    share = 100 * part / whole
    percent = "<1" if 0.05 <= share < 1 else f"{share:.0f}"
    return f"{scale.text(part)} {percent:>4}"


def _above(gap: float) -> str:
    return f"{format_percent(gap)} above it"
