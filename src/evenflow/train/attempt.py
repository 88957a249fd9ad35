"""One start of a run's ranks, from what is prepared or saved so far, and what they say until they are done."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import isfinite

from evenflow.errors import EvenflowError, FaultError, RankLostError
from evenflow.files import RankProcess, StepMetrics, load_metrics, save_ranks, truncate_metrics, truncate_samples
from evenflow.launch import Group, Launcher, Message
from evenflow.models import ModelSource
from evenflow.plan import Plan
from evenflow.search import plan_program
from evenflow.spec import Batch, Model
from evenflow.spec.cluster import CPU
from evenflow.spec.gpus import visible_gpus
from evenflow.train.checkpoint import Checkpoint, Checkpoints, RunState, Taken, config_hash
from evenflow.train.copies import LeftCopies
from evenflow.train.folder import RunFolder
from evenflow.train.job import Job, lasting_settings
from evenflow.train.lacking import held_and_planned, with_stages
from evenflow.train.pace import Pace
from evenflow.train.patience import first_patience, later_patience
from evenflow.train.prepare import PreparedText, evaluation_request
from evenflow.train.progress import Progress
from evenflow.train.recorder import Recorder
from evenflow.train.records import take_back, written_file
from evenflow.train.signals import StopSignals
from evenflow.units import format_bytes

# The name of what is being written: nothing in a run's folder has its own name before it is whole.
PARTIAL_MODEL = "model.partial"
PLAN = "plan.json"
TOKENS = ("tokens/tokens.json", "tokens/tokenizer.json")  # the first has the hashes of what lies beside it
_SHOWN_SAMPLES = 32


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is decided before ranks start.

    Attributes:
        source: the model.
        model: its layers.
        plan: what is run.
        text: what is trained on.
        checkpoint: what is gone on from; None where a run begins.
    """

    source: ModelSource
    model: Model
    plan: Plan
    text: PreparedText
    checkpoint: Checkpoint | None

    @property
    def batch(self) -> Batch:
        """The plan's."""
        return Batch(self.plan.global_batch_size, self.plan.micro_batch_size, self.plan.seq_length, self.plan.axes.dp)

    @property
    def done_steps(self) -> int:
        """How many steps are in the state that is gone on from."""
        return self.checkpoint.state.step if self.checkpoint else 0


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who hears of a run, and who may stop it.

    Attributes:
        progress: is told.
        signals: may ask the run to stop.
        folder: is kept once a step is done.
    """

    progress: Progress
    signals: StopSignals
    folder: RunFolder


class Attempt:
    """One start of all ranks.

    Args:
        job: what is trained.
        ready: from where.
        watcher: who hears of it.

    Attributes:
        recorder: what its steps came to, those before it included.
        checkpoints: those it writes.
        copies: what its ranks have copied of their state, which may be on no disk yet when they are lost.
        shards: of each rank, the bytes of each tensor of its shard of the model, once it is done.
        unwritten: why a shard of the model could not be written; None where all could.
        has_saved: whether it has written a checkpoint.
    """

    def __init__(self, job: Job, ready: Prepared, watcher: Watcher) -> None:
        self.recorder = _recorder(job, ready, watcher.progress)
        self.checkpoints = _checkpoints(job, ready, self.recorder)
        self.copies = LeftCopies()
        self.shards: dict[int, dict[str, int]] = {}
        self.unwritten: str | None = None
        self.has_saved = False
        self._last: Taken | None = None  # the state after the last step, once all ranks have written it
        self._taken: list[Taken] = []  # of others, those of steps that not all have told of yet
        self._fails = ""  # why the newest save came to nothing
        self._job = job
        self._ready = ready
        self._watcher = watcher
        measured = ready.plan.costs.get("layers") == "measured"
        axes = ready.plan.axes
        expected = [ready.plan.ranks[axes.coordinates(own).pp].busy_s for own in range(axes.processes)]
        self._pace = Pace(expected if measured else None)

    def run(self, launcher: Launcher) -> None:
        """Start the ranks and follow them to their end.

        Raises:
            RankLostError: one died, fell silent or got stuck; all were ended.
            FaultError: one failed at something it names, or the numbers are none any more; all were ended.
            StoppedError: a second signal came.
        """
        job, plan, out = self._job, self._ready.plan, self._job.out.resolve()
        shutil.rmtree(out / PARTIAL_MODEL, ignore_errors=True)
        self.checkpoints.clear()
        payload = _payload(job, self._ready)
        with launcher.running("train", "evenflow.train.ranks:run", plan.axes.processes, payload, plan.threads) as group:
            group.watch.patience = first_patience(plan.predicted.step_s)
            self._note_ranks(group)
            try:
                self._follow(group)
            except RankLostError as error:  # it may be started again, and then takes its last steps again too
                if group.starved is None:
                    raise
                raise RankLostError(f"{error}. {self._lacked(group.starved)}") from None
            except FaultError:
                self.keep_last()
                raise

    def _lacked(self, process: int) -> str:
        """What a process that the kernel killed for want of memory had, which it could not say itself."""
        plan, steps = self._ready.plan, self.recorder.metrics[self.recorder.done_before :]
        held = "more than there was"
        if steps:
            peak, copied = steps[-1].peak_bytes[plan.axes.coordinates(process).pp], self.copies.held_bytes(process)
            among = " (the most of its replicas and shards)" if plan.axes.copies * plan.axes.tp > 1 else ""
            held = f"{format_bytes(peak)} at most{among} up to step {steps[-1].step}"
            held += f", beside {format_bytes(copied)} of copied state" if copied else ""
        return f"Rank {process}, {with_stages(plan, process)}: {held_and_planned(plan, process, held)}"

    def _note_ranks(self, group: Group) -> None:
        """Write down who the ranks are; a disk that is full keeps no run from starting again for that."""
        path = self._job.out.resolve() / "ranks.json"
        processes = enumerate(zip(group.pids, group.hosts, strict=True))
        try:
            save_ranks([RankProcess(rank, pid, host) for rank, (pid, host) in processes], path)
        except FaultError as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)  # it names others
            self._watcher.progress.said(f"warning: {error}. Training goes on; nothing names its processes")

    def keep_last(self) -> None:
        """Give the state after the last step its name though its model could not be written, where steps are left.

        A state that all steps are in is never gone on from, so nothing would make its model: the one before is, then,
        where there is one.
        """
        if self._last is None or self._last.why_not is not None or self._last.step > self.recorder.newest:
            return
        if self._last.step >= self._job.steps and self.checkpoints.exist():
            return
        with suppress(FaultError):
            folder = self.checkpoints.publish(self._last.step)
            self._watcher.progress.said(f"the state after step {self._last.step} is saved all the same, in {folder}")

    @property
    def unfinished(self) -> int:
        """After which step its ranks, which are gone, left a state that can still be saved; 0 for none.

        Never that after the last step, which goes with its model: see `keep_last`.
        """
        last_step = self._job.stop_at or self._job.steps
        return self.checkpoints.unfinished(self.copies, min(self.recorder.newest, last_step - 1))

    def finish_save(self) -> bool:
        """Write down what its ranks, which are gone, had yet to write; whether that made a checkpoint.

        Raises:
            StoppedError: a second signal came.
        """
        try:
            self.recorder.write()  # a full disk may take now what it has not, and a checkpoint vouches for these lines
        except EvenflowError:
            return False
        step = self.unfinished
        if not step:
            return False
        self._watcher.progress.said(f"the state after step {step}, which all ranks had kept, is being saved")
        taken = self.checkpoints.finish(step, self.copies, self._watcher.signals.check_again)
        return self._saved(taken, tried_again=False)

    def _follow(self, group: Group) -> None:
        told, signals = False, self._watcher.signals
        for item in group.messages():
            signals.check_again()
            if signals.received is not None and not told:
                self._watcher.progress.said("stopping after this step; a second signal ends at once")
                group.tell({"kind": "stop"})
                told = True
            if item is not None:
                self._hear(group, *item)

    def _hear(self, group: Group, rank: int, message: Message) -> None:
        progress = self._watcher.progress
        match message["kind"]:
            case "step":
                metrics = self.recorder.take(rank, message)
                if metrics is not None:
                    self._stepped(group, metrics)
                    self._save_heard()
            case "saved":
                taken = self.checkpoints.take(rank, message)
                if taken is not None and message["last"]:
                    self._last = taken  # it waits for the model
                elif taken is not None:
                    self._taken.append(taken)
                    self._save_heard()
            case "copies" if not group.ranks[rank].process.where:
                self.copies.open(rank, group.pids[rank], message)
            case "skipped" if rank == 0:
                self._unsaved(message["step"], "the disk is slow: the one before is still being written")
            case "state":
                found = self.checkpoints.take_hashes(rank, message["hashes"])
                if found is not None:
                    progress.said(f"state: {found} is the hash of what the ranks have read, put together")
            case "clock":
                self.recorder.take_clock(rank, message)
            case "unwritten":
                self.unwritten = message["why"]
            case "shard":
                self.shards[rank] = message["sizes"]

    def _save_heard(self) -> None:
        """Publish what is saved of steps that all ranks have told of; some may do so after others have saved."""
        while self._taken and self._taken[0].step <= self.recorder.newest:
            self._saved(self._taken.pop(0))

    def _saved(self, taken: Taken, tried_again: bool = True) -> bool:
        if taken.why_not is not None:
            self._unsaved(taken.step, taken.why_not, tried_again)
            return False
        write_s, hash_s = self.checkpoints.seconds(taken.step)
        try:
            folder = self.checkpoints.publish(taken.step)
        except FaultError as error:
            self._unsaved(taken.step, str(error), tried_again)
            return False
        self._fails = ""
        self.has_saved = True
        self._watcher.progress.saved(folder, write_s, hash_s)
        return True

    def _unsaved(self, step: int, why: str, tried_again: bool = True) -> None:
        """A save that came to nothing costs no step: say so once, until one succeeds or fails otherwise."""
        if not tried_again:
            self._watcher.progress.said(f"warning: the state after step {step} is not saved: {why}")
            return
        kind = why.rpartition(": ")[2]
        if kind == self._fails:
            return
        self._fails = kind
        every = self._job.save_every or self._job.steps
        self._watcher.progress.said(
            f"warning: the state after step {step} is not saved: {why}. Training goes on, older checkpoints are as "
            f"they were, and it is tried again after step {step + every}"
        )

    def _stepped(self, group: Group, metrics: StepMetrics) -> None:
        own_steps = self.recorder.metrics[self.recorder.done_before :]
        group.watch.patience = later_patience(self._ready.plan.predicted.step_s, [own.step_s for own in own_steps])
        self._watcher.folder.keep()
        self._watcher.progress.stepped(metrics, self._job.steps)
        trouble = self.recorder.new_trouble()
        if trouble is not None:
            self._watcher.progress.said(f"warning: {trouble}. Training goes on; its lines are kept and written later")
        _check_finite(metrics, self.recorder, self._job)
        for line in self._pace.take(self.recorder.busy_s):
            self._watcher.progress.said(line)


def _payload(job: Job, ready: Prepared) -> Message:
    """What every rank is told; paths are whole, since ranks have the fork server's working directory."""
    plan, source, checkpoint, out = ready.plan, ready.source, ready.checkpoint, job.out.resolve()
    return {
        "plan": str(out / PLAN),
        "config": source.config.to_json_string(use_diff=False),
        "weights": [] if job.from_scratch else [str(path.resolve()) for path in source.weight_files],
        "seed": job.seed,
        "gpus": 0 if plan.device == CPU else len(visible_gpus()),
        "tokens": str(out / "tokens"),
        "packing": ready.text.sequences.packing,
        "separate": ready.text.sequences.separate,
        "hidden_size": ready.model.hidden_size,
        "crossing": ready.model.crossing or ready.plan.dtype,
        "last_step": job.stop_at or job.steps,
        "done_steps": ready.done_steps,
        "checkpoint": str(checkpoint.folder.resolve()) if checkpoint else None,
        "rates": asdict(job.rates()),
        "optimizer": asdict(job.optimizer()),
        "model_out": str(out / PARTIAL_MODEL),
        "run": str(out),
        "save_every": job.save_every,
        "evaluation": evaluation_request(job, plan.micro_batch_size),
        "z_loss": job.z_loss,
        "stop_on_nan": job.stop_on_nan,
    }


def _checkpoints(job: Job, ready: Prepared, recorder: Recorder) -> Checkpoints:
    plan = ready.plan
    model, settings = config_hash(ready.source.config), lasting_settings(job, ready.batch, ready.plan.dtype)
    found = {name: written_file(job.out / name) for name in (PLAN, *TOKENS)}
    own_files = {name: written for name, written in found.items() if written is not None}

    def state(step: int) -> RunState:
        beside = {**own_files, **recorder.written_after(step)}
        return RunState(model, step, recorder.tokens_after(step), settings, beside)

    ranks = len(plan.ranks) * plan.axes.tp
    return Checkpoints(job.out, ranks, state, job.keep_last, job.keep_every, ready.done_steps)


def _recorder(job: Job, ready: Prepared, progress: Progress) -> Recorder:
    """Writes down the steps from here on; what the files say of later ones, which are taken again, is dropped."""
    metrics, samples = job.out / "metrics.jsonl", job.out / "samples.jsonl"
    state = ready.checkpoint.state if ready.checkpoint else None
    for path, truncate in ((metrics, truncate_metrics), (samples, truncate_samples)):
        why = take_back(path, ready.done_steps, state.beside.get(path.name) if state else None, truncate)
        if why is not None:
            progress.said(f"warning: {why}")
    recorder = Recorder(ready.plan, plan_program(ready.plan), metrics, samples)
    recorder.after, recorder.tokens = ready.done_steps, state.tokens if state else 0
    if metrics.exists():
        recorder.metrics.extend(load_metrics(metrics))
        recorder.done_before = len(recorder.metrics)
    return recorder


def _check_finite(metrics: StepMetrics, recorder: Recorder, job: Job) -> None:
    """Stop a run whose numbers are none any more: its ranks have ended the step already, and updated nothing.

    Raises:
        FaultError: the step, what it came to, and where its samples are named.
    """
    if not job.stop_on_nan or (isfinite(metrics.loss) and isfinite(metrics.grad_norm)):
        return
    shown = ", ".join(map(str, recorder.samples[:_SHOWN_SAMPLES]))
    more = f", ... ({len(recorder.samples)} in all)" if len(recorder.samples) > _SHOWN_SAMPLES else ""
    raise FaultError(
        f"step {metrics.step} came to a loss of {metrics.loss:g} and a gradient norm of {metrics.grad_norm:g}; its "
        f"samples are {shown}{more}, the last line of {recorder.samples_path}, and nothing of it is saved. A smaller "
        "--lr may help, with --resume where there is a checkpoint; --no-stop-on-nan goes on"
    )
