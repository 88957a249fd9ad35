"""Where output goes: figures to standard output, everything said on the way to standard error."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from evenflow.cli.stdout import show_json
from evenflow.draw import held_out_text, plan_table
from evenflow.files import StepMetrics
from evenflow.plan import Plan
from evenflow.spec import Model
from evenflow.units import format_seconds

__all__ = ["TerminalProgress", "show", "show_json"]

_SAID_SHARE = 0.25  # of the data, between two lines without a terminal
_PLAIN_LINES = 20  # of a run without a terminal, beside its first and last


def show(*renderables: RenderableType) -> None:
    """Print tables for a person."""
    console = Console(highlight=False)
    for renderable in renderables:
        console.print(renderable, markup=False, soft_wrap=isinstance(renderable, str))


class TerminalProgress:
    """A training run as a person sees it: lines, the plan, then a progress bar or, without a terminal, plain lines."""

    def __init__(self, quiet_plan: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._quiet_plan = quiet_plan
        self._bar: Progress | None = None
        self._bar_of = ""  # what the bar shows
        self._next_share = _SAID_SHARE

    def tokenised(self, done: int, total: int, tokens: int) -> None:
        """Move the bar, or print a line at each quarter."""
        share = done / max(total, 1)
        if not sys.stderr.isatty():
            if share >= self._next_share and share < 1:
                self._next_share += _SAID_SHARE
                self.said(f"tokenising: {share:.0%}, {tokens:,} tokens")
            return
        figures = f"{tokens:,} tokens"
        bar = self._bar_for("tokenising", total, figures)
        bar.update(bar.task_ids[0], completed=min(done, total), figures=figures)
        if done >= total:
            self.closed()

    def said(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)

    def planned(self, plan: Plan, model: Model) -> None:
        """Print the plan as a table."""
        del model
        if not self._quiet_plan:
            self._console.print(plan_table(plan))

    def stepped(self, metrics: StepMetrics, steps: int) -> None:
        """Move the bar, or print a line now and then."""
        if metrics.eval_loss is not None:
            self.said(f"evaluation after step {metrics.step}: {held_out_text(metrics)}")
        figures = f"loss {metrics.loss:.3f}  {metrics.tokens_per_s:,.0f} tokens/s"
        if not sys.stderr.isatty():
            every = max(steps // _PLAIN_LINES, 1)
            if metrics.step in (1, steps) or metrics.step % every == 0:
                left = (steps - metrics.step) * metrics.step_s
                self.said(f"step {metrics.step}/{steps}  {figures}  {left:.0f} s left")
            return
        bar = self._bar_for("training", steps, figures)
        bar.update(bar.task_ids[0], completed=metrics.step, figures=figures)

    def saved(self, checkpoint: Path, write_s: float, hash_s: float) -> None:
        """Print a line."""
        del hash_s
        self.said(f"saved: {checkpoint}, written in {format_seconds(write_s)}")

    def _bar_for(self, what: str, total: int, figures: str) -> Progress:
        """The bar of one kind of work; that of another, which may have ended early, is left as it stands."""
        if self._bar is not None and self._bar_of == what:
            return self._bar
        self.closed()
        self._bar_of = what
        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn() if what == "training" else TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._bar.start()
        self._bar.add_task(what, total=total, figures=figures)
        return self._bar

    def closed(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
