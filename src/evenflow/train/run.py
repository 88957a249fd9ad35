"""A training run, from the process that asked for it: prepare, plan, start the ranks, watch them, keep the results."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from evenflow.draw import report_html
from evenflow.errors import FaultError, InputError, StoppedError, first_line
from evenflow.execute import refuse_layerdrop
from evenflow.files import (
    StepMetrics,
    save_plan,
    save_profile,
    save_timelines,
    write_text,
)
from evenflow.launch import Launcher, ThisHost, notice_torchrun, shared_server
from evenflow.measure import cached_profile
from evenflow.models import ModelSource, check_z_loss, describe_model, find_model
from evenflow.plan import Axes, Plan
from evenflow.search import check_request, find_out, make_plan, plan_timeline
from evenflow.spec import DEFAULT_GLOBAL_BATCH_SIZE, DEFAULT_SEQ_LENGTH, Batch, Cluster, Model
from evenflow.timeline import Comparison, Timeline, compare
from evenflow.train.attempt import PARTIAL_MODEL, PLAN, TOKENS, Attempt, Prepared, Watcher
from evenflow.train.checkpoint import Checkpoint, RunState, check_resumable, choose_dtype, config_hash
from evenflow.train.checks import check_apart, check_model
from evenflow.train.folder import RunFolder
from evenflow.train.hosts import check_ranks, lead
from evenflow.train.job import Job, lasting_settings
from evenflow.train.planning import (
    DEFAULT_RECOMPUTE,
    DEFAULT_SCHEDULE,
    check_agrees,
    check_axes,
    check_limit,
    follow_plan,
    make_batch,
)
from evenflow.train.preflight import check_descriptors, check_memory, check_room, checkpoint_bytes
from evenflow.train.prepare import (
    PreparedText,
    check_data,
    prepare_held_out,
    prepare_text,
    reopen_text,
)
from evenflow.train.progress import Progress, Silent
from evenflow.train.recorder import Recorder
from evenflow.train.records import why_damaged
from evenflow.train.save import finish_model_folder
from evenflow.train.signals import StopSignals
from evenflow.train.starts import Starts
from evenflow.train.supervise import go_on_from, see_through
from evenflow.train.trackers import tracked


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
    """Train a model split over processes of this host, or over the workers of the torchrun that started it.

    Args:
        job: what to train.
        progress: hears of it as it goes.

    Raises:
        InputError: something in the job is wrong; or this is a torchrun worker that does not lead.
        ImpossibleError: no plan fits the memory limit.
        FaultError: a rank failed or died; the others were ended.
        StoppedError: a signal stopped the run after a step; everything was saved first.
    """
    progress = tracked(job, progress or Silent())
    torchrun = notice_torchrun(os.environ)
    if torchrun is not None and not torchrun.leads:
        raise InputError(
            f"this worker has RANK {torchrun.rank}: it serves one rank and has no result of its own. "
            "`evenflow.train.serve()` does that, as does `python -m evenflow train`"
        )
    try:
        with StopSignals() as signals:
            if torchrun is None:
                return _run(job, progress, signals, ThisHost())
            with lead(torchrun, signals, progress.said) as (hosts, starts):
                return _run(job, progress, signals, hosts, starts)
    finally:
        progress.closed()


def _run(
    job: Job, progress: Progress, signals: StopSignals, launcher: Launcher, starts: Starts | None = None
) -> RunResult:
    check_ranks(launcher.ranks, job)
    again = starts is not None and starts.has_taken(job.out)
    if again:
        job = _going_on(job, progress, follows=starts is not None and starts.has_planned(job.out))
    source = find_model(job.model)
    if not job.from_scratch and not job.resume:
        source.check_weights()
    with _taken(RunFolder(job.out, job.data, job.resume or again), starts) as folder:
        if folder.left_by is not None:
            progress.said(f"note: {folder.left_by} ran in {job.out} and was killed; what it left unfinished is dropped")
        if folder.unguarded is not None:
            progress.said(folder.unguarded)
        shared_server()  # imports torch on another core while this process prepares
        launcher.check_shared(job.out, () if job.from_scratch else source.weight_files)
        ready = _prepare(job, source, progress, signals, launcher)
        _say_weights(job, ready, progress)
        save_plan(ready.plan, job.out / PLAN)
        if starts is not None:
            starts.planned(job.out)
        progress.planned(ready.plan, ready.model)
        for warning in _preflight(job, ready, launcher):
            progress.said(warning)
        attempt = see_through(job, ready, launcher, Watcher(progress, signals, folder))
        return _finish(job, ready, attempt, signals, starts)


@contextmanager
def _taken(folder: RunFolder, starts: Starts | None) -> Iterator[RunFolder]:
    """The run's folder, which torchrun's later starts know as theirs for as long as something of the run is in it."""
    try:
        with folder:
            if starts is not None:
                starts.took(folder.path)
            yield folder
    finally:
        if starts is not None and folder.is_emptied:
            starts.gave_back()


def _going_on(job: Job, progress: Progress, follows: bool) -> Job:
    """What torchrun's next start of a run does in the folder of the one before: it goes on, by the plan that it had.

    Where nothing is saved yet it begins anew, over what lies there.

    Args:
        job: the run.
        progress: is told.
        follows: whether the plan that lies there is the one before's.
    """
    saved = any((job.out / "checkpoints").glob("step-*"))
    where = "goes on from its newest checkpoint" if saved else "begins anew, as nothing was saved yet"
    progress.said(f"restart by torchrun: the run in {job.out} {where}")
    plan = job.out / PLAN
    if follows and job.plan is None and plan.exists():
        # It was made as these say, and need not look so: with `auto`, say.
        job = replace(job, plan=plan, schedule=None, recompute=None, stages_per_rank=None, memory_limit=None)
    return replace(job, resume=job.resume or saved)


def _preflight(job: Job, ready: Prepared, launcher: Launcher) -> Iterator[str]:
    """Ask for what would only be missed later; each is refused, or is a line to be said."""
    check_descriptors(ready.plan)
    last_step = (job.stop_at or job.steps) - 1  # that is copied: the state after all steps is written from where it is
    every = job.save_every or last_step + 1
    copied_bytes = checkpoint_bytes(ready.model) if last_step // every > ready.done_steps // every else 0
    check_memory(ready.plan, launcher.ranks_here(ready.plan.axes.processes), copied_bytes)
    warning = check_room(job.out, ready.model, job.keep_last)
    if warning is not None:
        yield warning


def _finish(
    job: Job, ready: Prepared, attempt: Attempt, signals: StopSignals, starts: Starts | None = None
) -> RunResult:
    """Give model and checkpoint their names, and say what the run came to."""
    recorder = attempt.recorder
    recorder.write()
    last = recorder.metrics[-1].step
    # The model first: a state that is complete is never resumed, so nothing would make its model afterwards.
    try:
        if attempt.unwritten is not None:
            raise OSError(attempt.unwritten)
        finish_model_folder(
            job.out / PARTIAL_MODEL,
            job.out / "model",
            ready.source,
            ready.text.tokenizer,
            ready.text.tokenizer_folder,
            ready.text.separator_id,
            [attempt.shards[rank] for rank in sorted(attempt.shards)],
            ready.plan.dtype,
        )
    except (OSError, InputError) as error:
        attempt.keep_last()
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise FaultError(
            f"{job.out / 'model'} cannot be written: {reason}; once it can be, --resume goes on from the newest "
            "checkpoint and writes it"
        ) from None
    attempt.checkpoints.publish(last)
    if starts is not None and last == (job.stop_at or job.steps):
        starts.ended(None)  # what is lost from here on, no other start would do
    result = _result(job, ready.plan, recorder)
    if signals.received is not None and last < (job.stop_at or job.steps):
        raise StoppedError(
            f"stopped by {signal.Signals(signals.received).name} after step {last} of {job.steps}; "
            f"everything is saved in {job.out}, and --resume goes on",
            signals.received,
        )
    return result


def _prepare(job: Job, source: ModelSource, progress: Progress, signals: StopSignals, launcher: Launcher) -> Prepared:
    """Decide everything, what is quick to refuse first."""
    checkpoint = None
    if job.resume:
        checkpoint = go_on_from(job.out, progress)
        if checkpoint is None:
            raise InputError(f"--resume: {job.out} has no complete checkpoint; a new --out starts a new run")
        _check_beside(job, checkpoint, progress)
    else:
        check_data(job, source)
    if job.plan is not None:
        model, plan = follow_plan(job.plan, source, launcher.ranks)
        check_ranks(launcher.ranks, job, plan.axes.processes)
        check_agrees(plan, job)
        launcher.cluster(plan.axes.processes, plan.threads)  # refuses hosts that differ
        axes, batch = plan.axes, _batch_of(plan)
        _check_drops(source, axes)
    else:
        plan = None
        cluster, axes, batch = _cluster_and_batch(job, source, checkpoint, launcher)
        _check_drops(source, axes)
        dtype = choose_dtype(job, checkpoint.state if checkpoint else None)
        model = describe_model(source, batch.micro_batch_size, batch.seq_length, axes.tp, dtype)
        check_request(model, cluster, batch, _schedule(job), job.stages_per_rank, axes)
        check_limit(job.memory_limit, cluster)
    if checkpoint is not None:
        wanted = RunState(config_hash(source.config), 0, 0, lasting_settings(job, batch, model.dtype))
        check_resumable(checkpoint.state, wanted, job.stop_at or job.steps, job.out)
    if job.z_loss:
        check_z_loss(source.config)
    signals.check()
    text = _text(job, source, batch.seq_length, progress, signals)
    prepare_held_out(job, source, text, job.out, progress, signals.check)
    check_apart(job, source, text, progress)
    signals.check()
    if plan is None:
        plan = _plan(job, source, model, cluster, axes, batch, progress, signals, launcher)
    check_model(job, source, plan.axes, progress)
    signals.check()
    return Prepared(source, model, plan, text, checkpoint)


def _check_beside(job: Job, checkpoint: Checkpoint, progress: Progress) -> None:
    """Name files that are not what the checkpoint was trained with, before anything is made of them.

    Raises:
        InputError: tokens are: with others it would be another run.
    """
    beside = checkpoint.state.beside
    found = {name: why_damaged(job.out / name, beside[name]) for name in (PLAN, *TOKENS) if name in beside}
    for name in TOKENS:
        if (why := found.get(name)) is not None:
            raise InputError(f"{why}; the file as it was, from a copy of {job.out}, would do")
    why = found.get(PLAN)
    if why is None:
        return
    follows = job.plan is not None and job.plan.resolve() == (job.out / PLAN).resolve()
    then = "it is followed as it is, since --plan says so" if follows else "the plan of this start takes its place"
    progress.said(f"warning: {why}, unless a later start that saved nothing left it; {then}")


def _cluster_and_batch(
    job: Job, source: ModelSource, checkpoint: Checkpoint | None, launcher: Launcher
) -> tuple[Cluster, Axes, Batch]:
    """A resumed run keeps its microbatch, over which gradients add up in order, unless it is told otherwise."""
    axes = job.axes(launcher.ranks, launcher.cluster(None, job.threads).devices)
    check_axes(axes, "this job")
    cluster = launcher.cluster(axes.processes, job.threads)
    kept = checkpoint.state.settings.get("micro_batch_size") if checkpoint else None
    longest = getattr(source.config, "max_position_embeddings", None)
    batch = make_batch(
        job.global_batch_size or DEFAULT_GLOBAL_BATCH_SIZE,
        job.micro_batch_size or (kept if isinstance(kept, int) else None),
        job.seq_length or min(DEFAULT_SEQ_LENGTH, longest if isinstance(longest, int) else DEFAULT_SEQ_LENGTH),
        axes,
    )
    return cluster, axes, batch


def _text(job: Job, source: ModelSource, seq_length: int, progress: Progress, signals: StopSignals) -> PreparedText:
    folder = job.out / "tokens"
    if job.resume:
        return reopen_text(job, source, folder, seq_length)
    return prepare_text(job, source, folder, seq_length, progress, signals.check)


def _plan(
    job: Job,
    source: ModelSource,
    model: Model,
    cluster: Cluster,
    axes: Axes,
    batch: Batch,
    progress: Progress,
    signals: StopSignals,
    launcher: Launcher,
) -> Plan:
    """Profile and plan, over what the executor runs."""
    profile = cached_profile(
        source,
        model,
        cluster,
        lambda: progress.said(f"profile: timing layers with {cluster.devices} busy processes"),
        job.measure_again,
        signals.check,
        launcher,
    )
    save_profile(profile, job.out / "profile.json")
    recompute = job.recompute or DEFAULT_RECOMPUTE
    return make_plan(
        model,
        cluster,
        batch,
        profile.costs(),
        _schedule(job),
        job.memory_limit,
        stages_per_rank=job.stages_per_rank,
        recompute=recompute,
        axes=axes,
        zero=job.zero_stage,
    )


def _check_drops(source: ModelSource, axes: Axes) -> None:
    if axes.pp * axes.tp > 1:
        refuse_layerdrop(source.config)


def _batch_of(plan: Plan) -> Batch:
    return Batch(plan.global_batch_size, plan.micro_batch_size, plan.seq_length, plan.axes.dp)


def _schedule(job: Job) -> str:
    return DEFAULT_SCHEDULE if job.schedule is None else job.schedule  # an empty name is none, and refused


def _say_weights(job: Job, ready: Prepared, progress: Progress) -> None:
    if ready.checkpoint is not None:
        progress.said(f"weights: of {ready.checkpoint.folder}, after step {ready.checkpoint.state.step} of {job.steps}")
    elif ready.source.weight_files and not job.from_scratch:
        progress.said(f"weights: read from {ready.source.folder}")
    else:
        progress.said(f"weights: drawn from seed {job.seed}")


def _result(job: Job, plan: Plan, recorder: Recorder) -> RunResult:
    typical = recorder.typical()
    assert typical is not None, "a run has at least one step"
    step, measured = typical
    predicted = plan_timeline(plan)
    save_timelines(job.out / "timeline.json", predicted, measured, step)
    findings = find_out(plan, predicted, measured, with_schedules=True)
    write_text(job.out / "report.html", report_html(plan, predicted, measured, recorder.metrics, findings))
    return RunResult(
        out=job.out,
        plan=plan,
        metrics=tuple(recorder.metrics),
        typical=recorder.summary(),
        predicted=predicted,
        measured=measured,
        comparison=compare(predicted, measured),
    )
