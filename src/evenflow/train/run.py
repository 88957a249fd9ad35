"""A training run, from the process that asked for it: prepare, plan, start the ranks, watch them, keep the results."""

from __future__ import annotations

import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from evenflow.draw import report_html
from evenflow.errors import InputError, StoppedError
from evenflow.execute import check_split
from evenflow.files import (
    RankProcess,
    StepMetrics,
    save_plan,
    save_profile,
    save_ranks,
    save_timelines,
    write_text,
)
from evenflow.launch import Group, cores_of_ranks, shared_server
from evenflow.measure import cached_profile
from evenflow.models import ModelSource, describe_model, find_model
from evenflow.plan import Plan
from evenflow.search import make_plan, plan_program, plan_timeline
from evenflow.spec import Model
from evenflow.spec.cluster import local_cluster
from evenflow.timeline import Comparison, Timeline, compare
from evenflow.train.job import Job, check_run_folder
from evenflow.train.planning import DEFAULT_SCHEDULE, follow_plan, make_batch
from evenflow.train.prepare import prepare_text
from evenflow.train.progress import Progress, Silent
from evenflow.train.recorder import Recorder, summary
from evenflow.train.save import finish_model_folder


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to.

    Attributes:
        out: its folder.
        plan: the plan it followed.
        metrics: every step.
        typical: medians over the steps after the warm-up.
        predicted: the simulated step.
        measured: the step of median length.
        comparison: one held against the other.
    """

    out: Path
    plan: Plan
    metrics: tuple[StepMetrics, ...]
    typical: StepMetrics
    predicted: Timeline
    measured: Timeline
    comparison: Comparison


def train(job: Job, progress: Progress | None = None) -> RunResult:
    """Train a model split over processes of this machine.

    Args:
        job: what to train.
        progress: hears of it as it goes.

    Raises:
        InputError: something in the job is wrong.
        ImpossibleError: no plan fits the memory limit.
        FaultError: a rank failed or died; the others were ended.
        StoppedError: a signal stopped the run after a step; everything was saved first.
    """
    progress = progress or Silent()
    try:
        with _StopSignals() as signals:
            return _run(job, progress, signals)
    finally:
        progress.closed()


def _run(job: Job, progress: Progress, signals: _StopSignals) -> RunResult:
    source = find_model(job.model)
    check_run_folder(job.out, job.data)
    server = shared_server()  # imports torch on another core while this process tokenises
    job.out.mkdir(parents=True, exist_ok=True)
    with _emptied_if_refused(job.out):
        text = prepare_text(source, job.data, job.out / "tokens", job.seq_length, progress)
        model, plan = _plan(job, source, progress)
        if job.check and len(plan.ranks) > 1:
            checked = check_split(source.config)
            progress.said(f"check: split equals whole (worst relative error {checked.worst_error:.1e})")
    weights = [] if job.from_scratch else [str(path) for path in source.weight_files]
    progress.said(f"weights: read from {source.folder}" if weights else f"weights: drawn from seed {job.seed}")
    save_plan(plan, job.out / "plan.json")
    progress.planned(plan, model)
    recorder = Recorder(plan, plan_program(plan), job.out / "metrics.jsonl")
    with tempfile.TemporaryDirectory(prefix="evenflow-") as meeting:
        config = Path(meeting) / "config.json"
        source.config.to_json_file(config, use_diff=False)
        model_out = job.out / "model.partial"
        model_out.mkdir()
        group = server.start(
            "train",
            "evenflow.train.ranks:run",
            len(plan.ranks),
            {
                "plan": str(job.out / "plan.json"),
                "config": str(config),
                "weights": weights,
                "seed": job.seed,
                "rendezvous": f"{meeting}/rendezvous",
                "tokens": str(job.out / "tokens"),
                "hidden_size": model.hidden_size,
                "steps": job.steps,
                "learning_rate": job.learning_rate,
                "model_out": str(model_out),
            },
            cores_of_ranks(len(plan.ranks), plan.threads),
        )
        host = socket.gethostname()
        save_ranks([RankProcess(rank, pid, host) for rank, pid in enumerate(group.pids)], job.out / "ranks.json")
        signals.stop_after_step = True
        shards = _watch(group, recorder, progress, signals, job.steps)
    finish_model_folder(
        model_out, job.out / "model", source, text.tokenizer, text.tokenizer_folder, text.separator_id, shards
    )
    result = _result(job, plan, recorder)
    if signals.received is not None and recorder.metrics[-1].step < job.steps:
        raise StoppedError(
            f"stopped by {signal.Signals(signals.received).name} after step {recorder.metrics[-1].step} "
            f"of {job.steps}; the model of that step is saved in {job.out / 'model'}",
            signals.received,
        )
    return result


def _plan(job: Job, source: ModelSource, progress: Progress) -> tuple[Model, Plan]:
    if job.plan is not None:
        return follow_plan(job.plan, source)
    cluster = local_cluster(job.processes, job.threads)
    batch = make_batch(job.global_batch_size, job.micro_batch_size, job.seq_length, cluster.devices)
    model = describe_model(source, batch.micro_batch_size, batch.seq_length)
    # What no profile can mend is refused before seconds are spent on measuring.
    _refuse_early(model, cluster.devices)
    profile = cached_profile(
        source,
        model,
        cluster,
        lambda: progress.said(f"profile: timing layers with {cluster.devices} busy processes"),
        job.measure_again,
    )
    save_profile(profile, job.out / "profile.json")
    plan = make_plan(model, cluster, batch, profile.costs(), job.schedule or DEFAULT_SCHEDULE, job.memory_limit)
    return model, plan


def _refuse_early(model: Model, ranks: int) -> None:
    if ranks > len(model.layers):
        raise InputError(
            f"{ranks} stages need at least {ranks} layers; {model.name} has {len(model.layers)}: "
            f"--processes {len(model.layers)} or fewer would do"
        )


def _watch(
    group: Group, recorder: Recorder, progress: Progress, signals: _StopSignals, steps: int
) -> list[dict[str, int]]:
    """Follow the ranks to their end; returns each rank's shard of the model."""
    shards: dict[int, dict[str, int]] = {}
    told = False
    try:
        for item in group.messages():
            if signals.received is not None and not told:
                progress.said("stopping after this step; a second signal ends at once")
                group.tell({"kind": "stop"})
                told = True
            if item is None:
                continue
            rank, message = item
            if message["kind"] == "step":
                metrics = recorder.take(rank, message)
                if metrics is not None:
                    progress.stepped(metrics, steps)
            elif message["kind"] == "shard":
                shards[rank] = message["sizes"]
    finally:
        group.end()
    return [shards[rank] for rank in sorted(shards)]


def _result(job: Job, plan: Plan, recorder: Recorder) -> RunResult:
    typical = recorder.typical()
    assert typical is not None, "a run has at least one step"
    step, measured = typical
    predicted = plan_timeline(plan)
    save_timelines(job.out / "timeline.json", predicted, measured, step)
    write_text(job.out / "report.html", report_html(plan, predicted, measured, recorder.metrics))
    return RunResult(
        out=job.out,
        plan=plan,
        metrics=tuple(recorder.metrics),
        typical=summary(recorder.metrics),
        predicted=predicted,
        measured=measured,
        comparison=compare(predicted, measured),
    )


@contextmanager
def _emptied_if_refused(out: Path) -> Iterator[None]:
    """A job that is refused before it starts leaves its folder as empty as it found it."""
    try:
        yield
    except BaseException:
        for path in sorted(out.rglob("*"), reverse=True):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        with suppress(OSError):
            out.rmdir()
        raise


class _StopSignals:
    """SIGINT and SIGTERM end the run at once until ranks train; then the first one stops it after a step.

    Attributes:
        received: the first signal.
        stop_after_step: whether there are steps to wait for.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.stop_after_step = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not the main thread: signals are its business
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.stop_after_step:
            raise StoppedError(f"stopped by {signal.Signals(number).name} before the first step", number)
        if self.received is not None:
            raise StoppedError("stopped at once by a second signal; the model was not saved", number)
        self.received = number
