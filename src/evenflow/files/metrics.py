"""metrics.jsonl: a line for each step, appended as the run goes, that plotting scripts follow."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, nan
from pathlib import Path
from typing import Annotated

from pydantic import Field

from evenflow.files.document import Part, checked, json_text, parse_json, read_text, write_text
from evenflow.files.parts import MOST_FIGURE, Amount, Bytes, Count, Figure, Tokens

_MOST_EXPONENT = 700.0
_MAY_DIVERGE = frozenset(("loss", "grad_norm", "eval_loss", "eval_perplexity"))  # null in the file where they have


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One step of a run.

    Attributes:
        step: the step's number, from 1.
        loss: mean over its tokens; not a number once a run has diverged (null in the file).
        grad_norm: the gradient's norm before clipping; the same holds.
        lr: its learning rate.
        tokens: tokens trained on so far, this step's included.
        tokens_per_s: of the whole job.
        step_s: its seconds.
        idle_fraction: summed idle / (ranks x step).
        imbalance: max busy / mean busy over ranks.
        mfu: model FLOPs over those that its devices could have done.
        peak_bytes: for each rank, the most memory it held so far.
        eval_loss: mean over the predicted tokens that are held out, after this step; None where it was not looked at.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    tokens_per_s: float
    step_s: float
    idle_fraction: float
    imbalance: float
    mfu: float
    peak_bytes: tuple[int, ...]
    eval_loss: float | None = None

    @property
    def eval_perplexity(self) -> float | None:
        """What `eval_loss` is in choices of a token; infinite where that is too large a number."""
        if self.eval_loss is None:
            return None
        return exp(self.eval_loss) if self.eval_loss < _MOST_EXPONENT else inf


class MetricsPart(Part):
    """One line. It has no version of its own: its keys are a promise."""

    step: Count
    loss: Figure | None
    grad_norm: Figure | None
    lr: Annotated[float, Field(ge=0)]
    tokens: Tokens
    tokens_per_s: Amount
    step_s: Amount
    idle_fraction: Figure
    imbalance: Figure
    mfu: Figure
    peak_bytes: list[Bytes]
    eval_loss: Figure | None = None
    eval_perplexity: Figure | None = None

    @classmethod
    def of(cls, metrics: StepMetrics) -> MetricsPart:
        """The line that says what `metrics` is."""
        values = {name: getattr(metrics, name) for name in StepMetrics.__slots__}
        values["peak_bytes"] = list(metrics.peak_bytes)
        if metrics.eval_loss is None:
            values.pop("eval_loss")
        else:
            values["eval_perplexity"] = metrics.eval_perplexity
        for name in _MAY_DIVERGE & values.keys():
            values[name] = values[name] if abs(values[name]) <= MOST_FIGURE else None
        return cls(**values)

    def value(self) -> StepMetrics:
        """The step that this line says."""
        values = self.model_dump(exclude_unset=True)
        values["peak_bytes"] = tuple(self.peak_bytes)
        values.pop("eval_perplexity", None)  # follows from the loss
        for name in _MAY_DIVERGE & values.keys():
            values[name] = nan if values[name] is None else values[name]
        return StepMetrics(**values)


def metrics_line(metrics: StepMetrics) -> str:
    """One step as a line of JSON, without the line's end."""
    return json_text(MetricsPart.of(metrics).model_dump(exclude_unset=True), indented=False).rstrip("\n")


def load_metrics(path: Path) -> tuple[StepMetrics, ...]:
    """Read all steps. A last line without an end is what a killed run was writing, and is passed over.

    Raises:
        InputError: a line is not a step (the line is named).
    """
    text = read_text(path)
    lines = text.split("\n")[:-1]
    return tuple(
        checked(MetricsPart, parse_json(line, f"{path}: line {number}"), f"{path}: line {number}").value()
        for number, line in enumerate(lines, 1)
        if line.strip()
    )


def truncate_metrics(path: Path, last_step: int) -> None:
    """Drop the steps after `last_step`, atomically: a resumed run takes them again.

    Raises:
        InputError: the file has a line that is not a step.
    """
    kept = [metrics_line(metrics) for metrics in load_metrics(path) if metrics.step <= last_step]
    write_text(path, "".join(line + "\n" for line in kept))
