"""A training run, from the process that asked for it: prepare, plan, start the ranks, watch them, keep the results."""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evenflow.draw import report_html
from evenflow.errors import InputError, StoppedError
from evenflow.execute import check_split
from evenflow.files import (
    RankProcess,
    StepMetrics,
    load_metrics,
    save_plan,
    save_profile,
    save_ranks,
    save_timelines,
    truncate_metrics,
    write_text,
)
from evenflow.launch import ForkServer, Group, cores_of_ranks, shared_server
from evenflow.measure import cached_profile
from evenflow.models import ModelSource, describe_model, find_model
from evenflow.plan import Plan
from evenflow.search import check_request, make_plan, plan_program, plan_timeline
from evenflow.spec import Model
from evenflow.spec.cluster import local_cluster
from evenflow.timeline import Comparison, Timeline, compare
from evenflow.train.checkpoint import RunState, check_resumable, newest_checkpoint, publish
from evenflow.train.job import Job, check_run_folder
from evenflow.train.planning import DEFAULT_SCHEDULE, follow_plan, make_batch
from evenflow.train.prepare import PreparedText, prepare_text, reopen_text
from evenflow.train.progress import Progress, Silent
from evenflow.train.recorder import Recorder, summary
from evenflow.train.save import finish_model_folder
from evenflow.train.signals import StopSignals

# Names of what is being written: nothing in a run's folder has its own name before it is whole.
_PARTIAL_MODEL = "model.partial"
_PARTIAL_STATE = "checkpoints/partial"


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
        with StopSignals() as signals:
            return _run(job, progress, signals)
    finally:
        progress.closed()


def _run(job: Job, progress: Progress, signals: StopSignals) -> RunResult:
    source = find_model(job.model)
    check_run_folder(job.out, job.data, job.resume)
    server = shared_server()  # imports torch on another core while this process tokenises
    with _left_as_found(job.out, job.resume):
        checkpoint = _checkpoint(job) if job.resume else None
        given = follow_plan(job.plan, source) if job.plan else None
        seq_length = given[1].seq_length if given else job.seq_length
        text = _text(job, source, seq_length, progress)
        micro_batch_size = checkpoint[1].micro_batch_size if checkpoint else None
        model, plan = given or _plan(job, source, job.micro_batch_size or micro_batch_size, progress)
        if job.check and len(plan.ranks) > 1:
            checked = check_split(source.config)
            progress.said(f"check: split equals whole (worst relative error {checked.worst_error:.1e})")
        if checkpoint is not None:
            check_resumable(checkpoint[1], _state(job, plan, step=0), job.stop_at or job.steps, job.out)
    _say_weights(job, source, checkpoint, progress)
    save_plan(plan, job.out / "plan.json")
    progress.planned(plan, model)
    metrics_path = job.out / "metrics.jsonl"
    recorder = Recorder(plan, plan_program(plan), metrics_path)
    if checkpoint is not None:
        truncate_metrics(metrics_path, checkpoint[1].step)
        recorder.metrics.extend(load_metrics(metrics_path))
    shards = _run_ranks(job, source, model, recorder, checkpoint, server, progress, signals)
    last = recorder.metrics[-1].step
    publish(job.out / _PARTIAL_STATE, job.out, _state(job, plan, last), len(plan.ranks))
    finish_model_folder(
        job.out / _PARTIAL_MODEL,
        job.out / "model",
        source,
        text.tokenizer,
        text.tokenizer_folder,
        text.separator_id,
        shards,
    )
    result = _result(job, plan, recorder)
    if signals.received is not None and last < (job.stop_at or job.steps):
        raise StoppedError(
            f"stopped by {signal.Signals(signals.received).name} after step {last} of {job.steps}; "
            f"everything is saved in {job.out}, and --resume goes on",
            signals.received,
        )
    return result


def _checkpoint(job: Job) -> tuple[Path, RunState]:
    found = newest_checkpoint(job.out)
    if found is None:
        raise InputError(f"--resume: {job.out} has no complete checkpoint; without --resume a new folder starts a run")
    return found


def _text(job: Job, source: ModelSource, seq_length: int, progress: Progress) -> PreparedText:
    folder = job.out / "tokens"
    if job.resume:
        return reopen_text(source, folder, seq_length)
    return prepare_text(source, job.data, folder, seq_length, progress)


def _state(job: Job, plan: Plan, step: int) -> RunState:
    return RunState(
        step=step,
        steps=job.steps,
        seed=job.seed,
        global_batch_size=plan.global_batch_size,
        micro_batch_size=plan.micro_batch_size,
        seq_length=plan.seq_length,
        learning_rate=job.learning_rate,
    )


def _say_weights(job: Job, source: ModelSource, checkpoint: tuple[Path, RunState] | None, progress: Progress) -> None:
    if checkpoint is not None:
        progress.said(f"weights: of {checkpoint[0]}, after step {checkpoint[1].step} of {job.steps}")
    elif source.weight_files and not job.from_scratch:
        progress.said(f"weights: read from {source.folder}")
    else:
        progress.said(f"weights: drawn from seed {job.seed}")


def _plan(job: Job, source: ModelSource, micro_batch_size: int | None, progress: Progress) -> tuple[Model, Plan]:
    """Profile and plan, over what the executor runs."""
    cluster = local_cluster(job.processes, job.threads)
    batch = make_batch(job.global_batch_size, micro_batch_size, job.seq_length, cluster.devices)
    model = describe_model(source, batch.micro_batch_size, batch.seq_length)
    schedule = job.schedule or DEFAULT_SCHEDULE
    # What no profile can mend is refused before seconds are spent on measuring.
    check_request(model, cluster, batch, schedule)
    profile = cached_profile(
        source,
        model,
        cluster,
        lambda: progress.said(f"profile: timing layers with {cluster.devices} busy processes"),
        job.measure_again,
    )
    save_profile(profile, job.out / "profile.json")
    return model, make_plan(model, cluster, batch, profile.costs(), schedule, job.memory_limit)


def _run_ranks(
    job: Job,
    source: ModelSource,
    model: Model,
    recorder: Recorder,
    checkpoint: tuple[Path, RunState] | None,
    server: ForkServer,
    progress: Progress,
    signals: StopSignals,
) -> list[dict[str, int]]:
    """Start the ranks and follow them to their end; returns each rank's shard of the model."""
    plan = recorder.plan
    for partial in (_PARTIAL_MODEL, _PARTIAL_STATE):
        shutil.rmtree(job.out / partial, ignore_errors=True)
        (job.out / partial).mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="evenflow-") as meeting:
        config = Path(meeting) / "config.json"
        source.config.to_json_file(config, use_diff=False)
        group = server.start(
            "train",
            "evenflow.train.ranks:run",
            len(plan.ranks),
            {
                "plan": str(job.out / "plan.json"),
                "config": str(config),
                "weights": [] if job.from_scratch else [str(path) for path in source.weight_files],
                "seed": job.seed,
                "rendezvous": f"{meeting}/rendezvous",
                "tokens": str(job.out / "tokens"),
                "hidden_size": model.hidden_size,
                "steps": job.steps,
                "last_step": job.stop_at or job.steps,
                "done_steps": checkpoint[1].step if checkpoint else 0,
                "checkpoint": str(checkpoint[0]) if checkpoint else None,
                "learning_rate": job.learning_rate,
                "model_out": str(job.out / _PARTIAL_MODEL),
                "checkpoint_out": str(job.out / _PARTIAL_STATE),
            },
            cores_of_ranks(len(plan.ranks), plan.threads),
        )
        host = socket.gethostname()
        save_ranks([RankProcess(rank, pid, host) for rank, pid in enumerate(group.pids)], job.out / "ranks.json")
        signals.stop_after_step = True
        return _watch(group, recorder, progress, signals, job.steps)


def _watch(
    group: Group, recorder: Recorder, progress: Progress, signals: StopSignals, steps: int
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
def _left_as_found(out: Path, resume: bool) -> Iterator[None]:
    """A job that is refused before it starts leaves its folder as it found it: absent or empty, but for a resume."""
    existed = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be made: {error.strerror}; a folder that may be written would do"
        ) from None
    try:
        yield
    except BaseException:
        if not resume:
            shutil.rmtree(out, ignore_errors=True)
            if existed:
                out.mkdir()
        raise
