"""The report's sections about causes: who waits for whom, what would help, schedules, each layer's cost."""

from __future__ import annotations

from html import escape

from evenflow.draw.findings import blame_text, finding_lines
from evenflow.draw.page_tables import cell, head, row, section
from evenflow.draw.scale import bytes_scale, seconds_scale
from evenflow.plan import Plan
from evenflow.timeline import PATH_CAUSES, Findings, Timeline, blames, critical_path, path_seconds
from evenflow.units import format_bytes, format_percent, format_seconds

_MOST_CAUSES = 4  # of a rank's idle that are named


def advice_section(plan: Plan, shown: Timeline, findings: Findings) -> str:
    """What to change, in sentences."""
    items = "\n".join(f"<li>{escape(line)}</li>" for line in finding_lines(plan, shown, findings))
    return f'<section id="advice">\n<h2>What to change</h2>\n<ul>\n{items}\n</ul>\n</section>' if items else ""


def blame_section(shown: Timeline) -> str:
    """Each rank's idle by whoever was at work meanwhile."""
    scale = seconds_scale(rank.idle_s for rank in shown.ranks)
    heads = [head("rank"), head(f"idle {scale.unit}"), f'<th class="words">goes back to, {scale.unit}</th>']
    body = []
    for number, (own, found) in enumerate(zip(shown.ranks, blames(shown), strict=True)):
        named = [f"{blame_text(one)} <b>{scale.text(one.seconds)}</b>" for one in found[:_MOST_CAUSES]]
        rest = sum(one.seconds for one in found[_MOST_CAUSES:])
        if rest > 0:
            named.append(f"{len(found) - _MOST_CAUSES} more {scale.text(rest)}")
        body.append(
            row([cell(str(number)), cell(scale.text(own.idle_s)), f'<td class="words">{", ".join(named)}</td>'])
        )
    return section(f"Who waits for whom, {shown.origin}", heads, body)


def path_section(shown: Timeline, findings: Findings) -> str:
    """What the critical path is made of on each rank, and what a faster rank would gain."""
    spent = path_seconds(critical_path(shown), len(shown.ranks))
    scale = seconds_scale(sum(own.values()) for own in spent)
    total = sum(sum(own.values()) for own in spent) or 1.0
    gains = {own.rank: own for own in findings.faster}
    heads = [head("rank"), *(head(f"{cause} {scale.unit}") for cause in PATH_CAUSES), head("of the path")]
    if gains:
        heads += [head(f"{format_percent(findings.faster[0].speed - 1)} faster:<br>step"), head("step faster by")]
    body = []
    for rank, own in enumerate(spent):
        cells = [cell(str(rank)), *(cell(scale.text(own[cause])) for cause in PATH_CAUSES)]
        cells.append(cell(format_percent(sum(own.values()) / total)))
        if gains:
            then = gains.get(rank)
            cells += [
                cell(format_seconds(then.step_s) if then else "-"),
                cell(format_percent(then.gain) if then else "-"),
            ]
        body.append(row(cells, "most" if own["busy"] == max(one["busy"] for one in spent) and len(spent) > 1 else ""))
    return section(f"The critical path, {shown.origin}, and what a faster rank would gain", heads, body)


def schedules_section(plan: Plan, findings: Findings) -> str:
    """The plan's layers under every schedule, where that was worked out."""
    if not findings.compared:
        return ""
    heads = [
        '<th class="words">schedule</th>',
        *map(head, ("step", "idle", "imbalance", "peak memory", "above the bound")),
    ]
    heads.append('<th class="words"></th>')
    body = []
    for name, other, reason in findings.compared:
        if other is None:
            body.append(row([_word(name), *["<td>-</td>"] * 5, _word(reason)]))
            continue
        figures = (
            format_seconds(other.predicted.step_s),
            format_percent(other.predicted.idle_fraction),
            f"{other.predicted.imbalance:.3f}",
            format_bytes(max(rank.peak_bytes for rank in other.ranks)),
            format_percent(other.bound.gap),
        )
        own = name == plan.schedule
        body.append(row([_word(name), *map(cell, figures), _word("this plan" if own else "")], "most" if own else ""))
    return section("Schedules compared, predicted", heads, body)


def layers_section(plan: Plan) -> str:
    """What each layer costs, folded away until it is asked for."""
    compute = seconds_scale(s for own in plan.layers for s in (own.cost.forward_s, own.cost.backward_s))
    weights = bytes_scale(own.parameter_bytes for own in plan.layers)
    saved = bytes_scale(own.saved_bytes for own in plan.layers)
    stage_of = {layer: number for number, stage in enumerate(plan.stages) for layer in stage.layers}
    most = max(own.cost.forward_s + own.cost.backward_s for own in plan.layers) or 1.0
    heads = [
        head("layer"),
        head("stage"),
        '<th class="words">name</th>',
        '<th class="words wide">forward and backward</th>',
    ]
    heads += map(head, (f"forward {compute.unit}", f"backward {compute.unit}"))
    heads += map(head, (f"parameters {weights.unit}", f"saved {saved.unit}"))
    body = []
    for index, own in enumerate(plan.layers):
        widths = [100 * part / most for part in (own.cost.forward_s, own.cost.backward_s)]
        bar = "".join(
            f'<i class="{kind}" style="width:{wide:.1f}%"></i>' for kind, wide in zip("fb", widths, strict=True)
        )
        cells = [cell(str(index)), cell(str(stage_of[index])), _word(own.name)]
        cells.append(f'<td class="words"><div class="track">{bar}</div></td>')
        cells += [cell(compute.text(own.cost.forward_s)), cell(compute.text(own.cost.backward_s))]
        cells += [cell(weights.text(own.parameter_bytes)), cell(saved.text(own.saved_bytes))]
        body.append(row(cells))
    return section("Each layer's cost for one microbatch", heads, body, folded=True)


def _word(text: str) -> str:
    return f'<td class="words">{escape(text)}</td>'
