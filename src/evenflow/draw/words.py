"""How a person reads layers, causes and names: one wording for terminal, picture and page."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.files import StepMetrics
from evenflow.plan import Plan
from evenflow.spec.trainers import OURS
from evenflow.timeline import Figure

_AGAIN = {
    "none": "",
    "selective": ", attention recomputed",
    "full": ", blocks recomputed",
    "mixed": ", some blocks recomputed",
}


def plain(text: str) -> str:
    """Text from outside, without control characters that would move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers, runs joined: `0-7` or `1, 3, 5-8`."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def layers_text(layers: Sequence[int], count: int) -> str:
    """A stage's layers of a model of `count`: `0-7: embedding + 7 blocks`, `27: head`.

    The first layer of a model is its embedding and the last one its head.
    """
    if not layers:
        return "none"
    has_head = layers[-1] == count - 1 and count > 1
    blocks = len(layers) - (layers[0] == 0) - has_head
    parts = ["embedding"] if layers[0] == 0 else []
    if blocks:
        parts.append("1 block" if blocks == 1 else f"{blocks} blocks")
    if has_head:
        parts.append("head")
    return f"{ranges(layers)}: {' + '.join(parts)}"


def signed(value: float) -> str:
    """A difference with its sign and one digit, and no minus before a zero."""
    return f"{round(value, 1) + 0.0:+.1f}"


def error_text(figure: Figure) -> str:
    """How far measured is from predicted, in per cent."""
    return f"{signed(figure.error * 100)}%" if figure.predicted else "-"


def points_text(figure: Figure) -> str:
    """The same for a share, where a relative error would say little: the difference in points."""
    return f"{signed((figure.measured - figure.predicted) * 100)} points"


def origins_text(plan: Plan) -> str:
    """Where a plan's figures come from: `layers, link measured; memory analytic`."""
    groups: dict[str, list[str]] = {}
    for group, origin in plan.costs.items():
        groups.setdefault(origin, []).append(plain(group))
    return "; ".join(f"{', '.join(names)} {origin}" for origin, names in groups.items())


def held_out_text(metrics: StepMetrics) -> str:
    """What an evaluation found: `held-out loss 3.2189, perplexity 25`."""
    assert metrics.eval_loss is not None, "there was one"
    return f"held-out loss {metrics.eval_loss:.4f}, perplexity {metrics.eval_perplexity:.4g}"


def shape_text(plan: Plan) -> str:
    """What one step is: `local, 4 ranks x 2 replicas (ZeRO 1), 1f1b, 16 microbatches of 1 x 128 tokens`."""
    ranks = "1 rank" if len(plan.ranks) == 1 else f"{len(plan.ranks)} ranks"
    if plan.axes.tp > 1:
        ranks += f" x tp {plan.axes.tp}"
    for name in ("cp", "ep"):
        if (size := getattr(plan.axes, name)) > 1:
            ranks += f" x {name} {size}" if name == "cp" else f" (ep {size})"
    if plan.axes.dp > 1:
        ranks += f" x {plan.axes.dp} replicas" + (f" (ZeRO {plan.zero})" if plan.zero else "")
    microbatches = "1 microbatch" if plan.microbatches == 1 else f"{plan.microbatches} microbatches"
    shape = f"{plan.micro_batch_size} x {plan.seq_length} tokens"
    again = _AGAIN[plan.recomputed]
    runner = "" if plan.trainer == OURS else f", for {plain(plan.trainer)}"
    return f"{plain(plan.cluster)}, {ranks}, {plain(plan.schedule)}, {microbatches} of {shape}{again}{runner}"
