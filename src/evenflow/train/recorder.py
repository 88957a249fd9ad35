"""Gathers what the ranks report of each step into metrics and one measured timeline to hold against the plan."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from evenflow.errors import EvenflowError
from evenflow.files import StepMetrics, append_text, metrics_line, samples_line
from evenflow.launch import unpack
from evenflow.plan import Coordinates, Plan
from evenflow.program import Program
from evenflow.runtime import ClockOffset
from evenflow.timeline import RankTimeline, Timeline
from evenflow.train.records import Lines, Written

# The first steps allocate and fault pages in; of the others the newest are kept to choose a typical one.
_WARM_UP_STEPS = 2
_KEPT_STEPS = 50


@dataclass(frozen=True, slots=True)
class _Kept:
    """One step: its number, its length and what each rank reported of it."""

    step: int
    step_s: float
    reports: dict[int, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Correction:
    """One rank's clock against rank 0's, as it was compared so far: not at all, once, or at both ends of its steps."""

    found: tuple[ClockOffset, ...]

    def correct(self, moment: float) -> float:
        """A moment of the rank's clock on rank 0's; between two comparisons the clocks drift evenly."""
        if not self.found:
            return moment
        first, last = self.found[0], self.found[-1]
        if last.at_s == first.at_s:
            return moment + first.offset_s
        drift = (last.offset_s - first.offset_s) / (last.at_s - first.at_s)
        return moment + first.offset_s + drift * (moment - first.at_s)

    @property
    def error_s(self) -> float:
        """The most by which it may be wrong."""
        return max((own.error_s for own in self.found), default=0.0)


@dataclass
class Recorder:
    """Collects ranks' reports.

    Attributes:
        plan: the plan that runs.
        program: its program.
        metrics_path: where a line for each step is appended.
        samples_path: where its samples are.
        metrics: all steps so far, those before a resume included.
        done_before: how many of them that is.
        after: the step that is gone on from.
        tokens: trained on so far, which a checkpoint says of the steps before, whatever became of their metrics.
        samples: those of the newest step.
        busy_s: of each process, what it computed in the newest step.
    """

    plan: Plan
    program: Program
    metrics_path: Path
    samples_path: Path
    metrics: list[StepMetrics] = field(default_factory=list)
    done_before: int = 0
    after: int = 0
    tokens: int = 0
    samples: tuple[int, ...] = ()
    busy_s: tuple[float, ...] = ()
    _reports: dict[int, dict[int, dict[str, Any]]] = field(default_factory=dict)
    _clocks: dict[int, list[ClockOffset]] = field(default_factory=dict)
    _busy: dict[int, float] = field(default_factory=dict)
    _memory: dict[int, list[int]] = field(default_factory=dict)
    _unwritten: deque[tuple[str, str]] = field(default_factory=deque)  # lines of samples and metrics
    _trouble: str | None = None
    _told: str | None = None
    _kept: deque[_Kept] = field(default_factory=lambda: deque(maxlen=_KEPT_STEPS))
    _lines: dict[str, Lines] = field(init=False)

    def __post_init__(self) -> None:
        self._lines = {path.name: Lines(path) for path in (self.samples_path, self.metrics_path)}

    def take_clock(self, rank: int, report: dict[str, Any]) -> None:
        """Take what a rank found its clock to be from rank 0's: before its first step, and after its last."""
        self._clocks.setdefault(rank, []).append(ClockOffset(report["at"], report["offset"], report["error"]))

    def take(self, rank: int, report: dict[str, Any]) -> StepMetrics | None:
        """Take one rank's report of one step; the step's metrics once all ranks have reported it."""
        step: int = report["step"]
        reports = self._reports.setdefault(step, {})
        reports[rank] = report
        # Steps hold the same, so one that did not look is shown with what the newest that did has seen.
        report["memory"] = self._memory[rank] = report["memory"] or self._memory.get(rank, [])
        if len(reports) < self.plan.axes.processes:
            return None
        del self._reports[step]
        timeline = self._timeline(reports)
        self.busy_s = tuple(self._busy[process] for process in range(self.plan.axes.processes))
        warm_up = self.after + _WARM_UP_STEPS
        if step > warm_up or not self._kept:
            if self._kept and self._kept[0].step <= warm_up:
                self._kept.clear()
            self._kept.append(_Kept(step, timeline.step_s, reports))
        tokens: int = report["tokens"]
        # FLOPs of microbatches that are shorter than the plan's are taken to be fewer as their tokens are.
        worked = tokens / (self.plan.global_batch_size * self.plan.seq_length)
        self.tokens += tokens
        metrics = StepMetrics(
            step=step,
            loss=report["loss"],
            grad_norm=report["grad_norm"],
            lr=report["lr"],
            tokens=self.tokens,
            tokens_per_s=tokens / timeline.step_s,
            step_s=timeline.step_s,
            idle_fraction=timeline.idle_fraction,
            imbalance=timeline.imbalance,
            mfu=worked * self.plan.predicted.mfu * self.plan.predicted.step_s / timeline.step_s,
            peak_bytes=tuple(own.peak_bytes for own in timeline.ranks),
            eval_loss=report.get("eval_loss"),
        )
        samples = [sample for own in sorted(reports) for sample in reports[own].get("samples", ())]
        self.samples = tuple(samples)
        self.metrics.append(metrics)
        lines = samples_line(step, samples), metrics_line(metrics) + "\n"
        for own, line in zip(self._lines.values(), lines, strict=True):
            own.add(step, line)
        self._unwritten.append(lines)
        try:
            self.write()
        except EvenflowError as error:
            self._trouble = str(error)
        return metrics

    def write(self) -> None:
        """Write down what could not be so far.

        Raises:
            InputError: the place cannot be written to.
            FaultError: the disk failed or is full; what is in the files is whole.
        """
        while self._unwritten:
            samples, metrics = self._unwritten[0]
            if samples:
                append_text(self.samples_path, samples)
                self._unwritten[0] = "", metrics
            append_text(self.metrics_path, metrics)
            self._unwritten.popleft()
        self._trouble = self._told = None

    def new_trouble(self) -> str | None:
        """Why steps cannot be written down, where that has not been asked before."""
        if self._trouble == self._told:
            return None
        self._told = self._trouble
        return self._trouble

    @property
    def newest(self) -> int:
        """The newest step that all ranks have reported."""
        return self.metrics[-1].step if len(self.metrics) > self.done_before else self.after

    def tokens_after(self, step: int) -> int:
        """Tokens trained on once `step` was done, which all ranks have reported."""
        return next(own.tokens for own in reversed(self.metrics) if own.step == step)

    def written_after(self, step: int) -> dict[str, Written]:
        """By name, what its files are once all lines up to `step` are in them."""
        return {name: own.after(step) for name, own in self._lines.items()}

    def typical(self) -> tuple[int, Timeline] | None:
        """The kept step whose length is the median, with its number, all moments on rank 0's clock."""
        if not self._kept:
            return None
        kept = sorted(self._kept, key=lambda own: own.step_s)[(len(self._kept) - 1) // 2]
        return kept.step, self._timeline(kept.reports)

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
            mfu=median(step.mfu for step in settled),
        )

    def _timeline(self, reports: dict[int, dict[str, Any]]) -> Timeline:
        """The step of the pipeline that took longest; the memory of each rank is the most of all pipelines'."""
        axes = self.plan.axes
        places = [Coordinates(0, dp, tp) for dp in range(axes.dp) for tp in range(axes.tp)]
        pipelines = [self._pipeline(axes.pipeline(at), reports) for at in places]
        slowest = max(pipelines, key=lambda own: own.step_s)
        peaks = [max(own.ranks[rank].peak_bytes for own in pipelines) for rank in range(axes.pp)]
        ranks = zip(slowest.ranks, peaks, strict=True)
        return replace(slowest, ranks=tuple(replace(own, peak_bytes=peak) for own, peak in ranks))

    def _pipeline(self, processes: Sequence[int], all_reports: dict[int, dict[str, Any]]) -> Timeline:
        """One pipeline's step on the clock of process 0, the earliest begin taken as zero."""
        reports = {process: all_reports[process] for process in processes}
        clocks = {rank: _Correction(tuple(self._clocks.get(rank, ()))) for rank in reports}
        zero = min(clocks[rank].correct(report["begin"]) for rank, report in reports.items())
        errors = sorted(clock.error_s for clock in clocks.values())
        ranks = tuple(self._rank(rank, reports[own], clocks[own], zero) for rank, own in enumerate(processes))
        self._busy.update(zip(processes, (own.busy_s for own in ranks), strict=True))
        return Timeline("measured", self.program, ranks, clock_error_s=sum(errors[-2:]))

    def _rank(self, rank: int, report: dict[str, Any], clock: _Correction, zero: float) -> RankTimeline:
        moments = [clock.correct(moment) - zero for moment in unpack(report["spans"])]
        return RankTimeline(
            begin_s=clock.correct(report["begin"]) - zero,
            end_s=moments[-1],
            actions=self.program.ranks[rank],
            starts=tuple(moments[::2]),
            ends=tuple(moments[1::2]),
            peak_bytes=report["peak"],
            memory=tuple(report["memory"]),
        )
