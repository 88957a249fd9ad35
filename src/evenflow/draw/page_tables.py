"""The report's tables and bars, as plain HTML that stands without a script."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from evenflow.draw.idle_rows import PARTS, IdleRow, idle_rows
from evenflow.draw.scale import Scale, bytes_scale, seconds_scale
from evenflow.draw.words import error_text, layers_text
from evenflow.plan import Plan
from evenflow.timeline import Figure, Timeline
from evenflow.units import format_bytes, format_percent


def idle_section(timeline: Timeline) -> str:
    """Where each rank's step went: a bar of its parts, and the figures."""
    rows = idle_rows(timeline)
    scale = seconds_scale(own.wall_s for own in rows)
    heads = [head("rank"), '<th class="words wide">step</th>']
    heads += [head(f'<span class="swatch {part}"></span><br>{part} {scale.unit}') for part in PARTS]
    heads.append('<th class="words">waited<br>most for</th>')
    body = [
        row(
            [
                cell(str(number)),
                f'<td class="words">{_bar(own)}</td>',
                *(_part(seconds, own.wall_s, scale) for seconds in own.parts),
                f'<td class="words peer">{own.peer}</td>',
            ]
        )
        for number, own in enumerate(rows)
    ]
    title = f"Where each rank's step went, {timeline.origin}"
    return section(title, heads, body)


def stage_section(plan: Plan) -> str:
    """Who holds which layers, and what they cost."""
    stages = plan.stages
    compute = seconds_scale(seconds for stage in stages for seconds in (stage.cost.forward_s, stage.cost.backward_s))
    weights = bytes_scale(stage.memory.parameter_bytes for stage in stages)
    busy = seconds_scale(rank.busy_s for rank in plan.ranks)
    total = sum(rank.busy_s for rank in plan.ranks)
    most = max(rank.busy_s for rank in plan.ranks)
    heads = [
        head("stage"),
        head("rank"),
        '<th class="words">layers</th>',
        '<th class="words">from, to</th>',
        head(f"forward {compute.unit}"),
        head(f"backward {compute.unit}"),
        head(f"parameters {weights.unit}"),
        head(f"rank busy {busy.unit}"),
        head("share"),
    ]
    body: list[str] = []
    for number, stage in enumerate(stages):
        rank = plan.ranks[stage.rank]
        names = [plan.layer_names[layer] for layer in (stage.layers[:1] + stage.layers[1:][-1:])]
        cells = [
            cell(str(number)),
            cell(str(stage.rank)),
            f'<td class="words">{escape(layers_text(stage.layers, len(plan.layer_names)))}</td>',
            f'<td class="words quiet small">{escape(", ".join(names))}</td>',
            cell(compute.text(stage.cost.forward_s)),
            cell(compute.text(stage.cost.backward_s)),
            cell(weights.text(stage.memory.parameter_bytes)),
            cell(busy.text(rank.busy_s)),
            cell(format_percent(rank.busy_s / total) if total else "-"),
        ]
        body.append(row(cells, "most" if rank.busy_s == most and len(plan.ranks) > 1 else ""))
    return section("The plan: layers and their seconds for one microbatch", heads, body)


def memory_section(predicted: Timeline, measured: Timeline | None, limit: int) -> str:
    """Each rank's peak memory; where it was measured, with a tick where the prediction stands."""
    shown = predicted if measured is None else measured
    pairs = [(ours.peak_bytes, theirs.peak_bytes) for ours, theirs in zip(predicted.ranks, shown.ranks, strict=True)]
    scale = bytes_scale(value for pair in pairs for value in pair)
    largest = max((value for pair in pairs for value in pair), default=0) or 1
    heads = [
        head("rank"),
        f'<th class="words wider">{shown.origin}{", the tick is predicted" if measured else ""}</th>',
    ]
    heads.append(head(f"predicted {scale.unit}"))
    if measured is not None:
        heads += [head(f"measured {scale.unit}"), head("error")]
    body: list[str] = []
    for number, (expected, held) in enumerate(pairs):
        tick = f'<span class="tick" style="left:{100 * expected / largest:.2f}%"></span>' if measured else ""
        bar = f'<div class="track"><i class="f" style="width:{100 * held / largest:.2f}%"></i>{tick}</div>'
        cells = [cell(str(number)), f'<td class="words">{bar}</td>', cell(scale.text(expected))]
        if measured is not None:
            cells += [cell(scale.text(held)), cell(error_text(Figure(expected, held)))]
        body.append(row(cells))
    return section(f"Peak memory of each rank; the plan's limit is {format_bytes(limit)}", heads, body)


def _bar(row: IdleRow) -> str:
    parts = "".join(
        f'<i class="{part}" style="width:{max(100 * seconds / row.wall_s, 0):.2f}%"></i>'
        for part, seconds in zip(PARTS, row.parts, strict=True)
    )
    return f'<div class="track">{parts}</div>'


def _part(seconds: float, wall_s: float, scale: Scale) -> str:
    share = 100 * seconds / wall_s
    percent = "&lt;1%" if 0.05 <= share < 1 else f"{share:.0f}%"
    return f"<td>{scale.text(seconds)} <small>{percent}</small></td>"


def section(title: str, heads: Iterable[str], body: Iterable[str], folded: bool = False) -> str:
    """A table under its title; a folded one opens where its title is clicked, or by Enter."""
    top, rows = "".join(heads), "\n".join(body)
    table = f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    name = f"<h2>{escape(title)}</h2>"
    inside = f"<details>\n<summary>{name}</summary>\n{table}\n</details>" if folded else f"{name}\n{table}"
    return f'<section class="scroll">\n{inside}\n</section>'


def head(html: str) -> str:
    """A column's head, of figures."""
    return f"<th>{html}</th>"


def cell(text: str) -> str:
    """A cell of plain text."""
    return f"<td>{escape(text)}</td>"


def row(cells: Iterable[str], kind: str = "") -> str:
    """A row, of a class if it stands out."""
    return f'<tr class="{kind}">{"".join(cells)}</tr>' if kind else f"<tr>{''.join(cells)}</tr>"
