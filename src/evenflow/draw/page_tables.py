"""The report's tables and bars, as plain HTML that stands without a script."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from evenflow.draw.idle_rows import PARTS, IdleRow, idle_rows
from evenflow.draw.scale import Scale, bytes_scale, seconds_scale
from evenflow.draw.words import error_text, layers_text
from evenflow.plan import Plan
from evenflow.timeline import Figure, Timeline
from evenflow.units import format_percent


def idle_section(timeline: Timeline) -> str:
    """Where each rank's step went: a bar of its parts, and the figures."""
    rows = idle_rows(timeline)
    scale = seconds_scale(row.wall_s for row in rows)
    heads = [_head("rank"), '<th class="words wide">step</th>']
    heads += [_head(f'<span class="swatch {part}"></span><br>{part} {scale.unit}') for part in PARTS]
    heads.append('<th class="words">waited<br>most for</th>')
    body = [
        _row(
            [
                _cell(str(number)),
                f'<td class="words">{_bar(row)}</td>',
                *(_part(seconds, row.wall_s, scale) for seconds in row.parts),
                f'<td class="words peer">{row.peer}</td>',
            ]
        )
        for number, row in enumerate(rows)
    ]
    title = f"Where each rank's step went, {timeline.origin}"
    return _section(title, heads, body)


def stage_section(plan: Plan) -> str:
    """Who holds which layers, and what they cost."""
    stages = plan.stages
    compute = seconds_scale(seconds for stage in stages for seconds in (stage.cost.forward_s, stage.cost.backward_s))
    weights = bytes_scale(stage.memory.parameter_bytes for stage in stages)
    busy = seconds_scale(rank.busy_s for rank in plan.ranks)
    total = sum(rank.busy_s for rank in plan.ranks)
    most = max(rank.busy_s for rank in plan.ranks)
    heads = [
        _head("stage"),
        _head("rank"),
        '<th class="words">layers</th>',
        '<th class="words">from, to</th>',
        _head(f"forward {compute.unit}"),
        _head(f"backward {compute.unit}"),
        _head(f"parameters {weights.unit}"),
        _head(f"rank busy {busy.unit}"),
        _head("share"),
    ]
    body: list[str] = []
    for number, stage in enumerate(stages):
        rank = plan.ranks[stage.rank]
        names = [plan.layer_names[layer] for layer in (stage.layers[:1] + stage.layers[1:][-1:])]
        cells = [
            _cell(str(number)),
            _cell(str(stage.rank)),
            f'<td class="words">{escape(layers_text(stage.layers, len(plan.layer_names)))}</td>',
            f'<td class="words quiet small">{escape(", ".join(names))}</td>',
            _cell(compute.text(stage.cost.forward_s)),
            _cell(compute.text(stage.cost.backward_s)),
            _cell(weights.text(stage.memory.parameter_bytes)),
            _cell(busy.text(rank.busy_s)),
            _cell(format_percent(rank.busy_s / total) if total else "-"),
        ]
        body.append(_row(cells, "most" if rank.busy_s == most and len(plan.ranks) > 1 else ""))
    return _section("The plan: layers and their seconds for one microbatch", heads, body)


def memory_section(predicted: Timeline, measured: Timeline | None) -> str:
    """Each rank's peak memory; where it was measured, with a tick where the prediction stands."""
    shown = predicted if measured is None else measured
    pairs = [(ours.peak_bytes, theirs.peak_bytes) for ours, theirs in zip(predicted.ranks, shown.ranks, strict=True)]
    scale = bytes_scale(value for pair in pairs for value in pair)
    largest = max((value for pair in pairs for value in pair), default=0) or 1
    heads = [
        _head("rank"),
        f'<th class="words wider">{shown.origin}{", the tick is predicted" if measured else ""}</th>',
    ]
    heads.append(_head(f"predicted {scale.unit}"))
    if measured is not None:
        heads += [_head(f"measured {scale.unit}"), _head("error")]
    body: list[str] = []
    for number, (expected, held) in enumerate(pairs):
        tick = f'<span class="tick" style="left:{100 * expected / largest:.2f}%"></span>' if measured else ""
        bar = f'<div class="track"><i class="f" style="width:{100 * held / largest:.2f}%"></i>{tick}</div>'
        cells = [_cell(str(number)), f'<td class="words">{bar}</td>', _cell(scale.text(expected))]
        if measured is not None:
            cells += [_cell(scale.text(held)), _cell(error_text(Figure(expected, held)))]
        body.append(_row(cells))
    return _section("Peak memory of each rank", heads, body)


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


def _section(title: str, heads: Iterable[str], body: Iterable[str]) -> str:
    head, rows = "".join(heads), "\n".join(body)
    return (
        f'<section class="scroll">\n<h2>{escape(title)}</h2>\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</section>"
    )


def _head(html: str) -> str:
    return f"<th>{html}</th>"


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _row(cells: Iterable[str], kind: str = "") -> str:
    return f'<tr class="{kind}">{"".join(cells)}</tr>' if kind else f"<tr>{''.join(cells)}</tr>"
