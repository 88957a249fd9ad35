"""Gathers what the ranks report of each step into metrics and one measured timeline to hold against the plan."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from evenflow.files import StepMetrics, append_metrics
from evenflow.plan import Plan
from evenflow.program import Program
from evenflow.timeline import RankTimeline, Timeline

# The first steps allocate and fault pages in; of the others the newest are kept to choose a typical one.
_WARM_UP_STEPS = 2
_KEPT_STEPS = 50


@dataclass
class Recorder:
    """Collects ranks' reports.

    Attributes:
        plan: the plan that runs.
        program: its program.
        metrics_path: where a line for each step is appended.
        metrics: all steps so far, those before a resume included.
        done_before: how many of them that is.
    """

    plan: Plan
    program: Program
    metrics_path: Path
    metrics: list[StepMetrics] = field(default_factory=list)
    done_before: int = 0
    _reports: dict[int, dict[int, dict[str, Any]]] = field(default_factory=dict)
    _kept: deque[tuple[int, Timeline]] = field(default_factory=lambda: deque(maxlen=_KEPT_STEPS))

    def take(self, rank: int, report: dict[str, Any], ahead_s: float = 0.0) -> StepMetrics | None:
        """Take one rank's report of one step; the step's metrics once all ranks have reported it.

        Args:
            rank: whose it is.
            report: what it sent.
            ahead_s: how far its host's clock is ahead of ours.
        """
        step: int = report["step"]
        report = {
            **report,
            "begin": report["begin"] - ahead_s,
            "spans": [moment - ahead_s for moment in report["spans"]],
        }
        reports = self._reports.setdefault(step, {})
        reports[rank] = report
        if len(reports) < len(self.plan.ranks):
            return None
        del self._reports[step]
        timeline = self._timeline(reports)
        warm_up = self.done_before + _WARM_UP_STEPS
        if step > warm_up or not self._kept:
            if self._kept and self._kept[0][0] <= warm_up:
                self._kept.clear()
            self._kept.append((step, timeline))
        tokens = self.plan.global_batch_size * self.plan.seq_length
        metrics = StepMetrics(
            step=step,
            loss=report["loss"],
            grad_norm=report["grad_norm"],
            lr=report["lr"],
            tokens=tokens * step,
            tokens_per_s=tokens / timeline.step_s,
            step_s=timeline.step_s,
            idle_fraction=timeline.idle_fraction,
            imbalance=timeline.imbalance,
            peak_bytes=tuple(own.peak_bytes for own in timeline.ranks),
        )
        append_metrics(self.metrics_path, metrics)
        self.metrics.append(metrics)
        return metrics

    def typical(self) -> tuple[int, Timeline] | None:
        """The kept step whose length is the median, with its number."""
        if not self._kept:
            return None
        return sorted(self._kept, key=lambda kept: kept[1].step_s)[(len(self._kept) - 1) // 2]

    def summary(self) -> StepMetrics:
        """This launch's typical step: medians over its steps after the warm-up, the last step's loss."""
        own = self.metrics[self.done_before :]
        settled = own[_WARM_UP_STEPS:] or own
        return replace(
            own[-1],
            step_s=median(step.step_s for step in settled),
            tokens_per_s=median(step.tokens_per_s for step in settled),
            idle_fraction=median(step.idle_fraction for step in settled),
            imbalance=median(step.imbalance for step in settled),
        )

    def _timeline(self, reports: dict[int, dict[str, Any]]) -> Timeline:
        """All moments are on this host's clock by now; the earliest begin is taken as zero."""
        zero = min(report["begin"] for report in reports.values())
        return Timeline(
            "measured",
            self.program,
            tuple(self._rank(self.program, rank, reports[rank], zero) for rank in sorted(reports)),
        )

    @staticmethod
    def _rank(program: Program, rank: int, report: dict[str, Any], zero: float) -> RankTimeline:
        moments = [moment - zero for moment in report["spans"]]
        return RankTimeline(
            begin_s=report["begin"] - zero,
            end_s=moments[-1],
            actions=program.ranks[rank],
            starts=tuple(moments[::2]),
            ends=tuple(moments[1::2]),
            peak_bytes=report["peak"],
        )
