"""Where a run's metrics go beside metrics.jsonl: TensorBoard and Weights & Biases, behind one small interface."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from evenflow.errors import InputError
from evenflow.files import StepMetrics
from evenflow.plan import Plan
from evenflow.spec import Model
from evenflow.train.job import Job
from evenflow.train.progress import Progress

Scalars = Mapping[str, float]


class Tracker(Protocol):
    """Keeps a run's figures where people look at them."""

    def log(self, step: int, scalars: Scalars) -> None:
        """The figures of one step."""

    def close(self) -> None:
        """No more will come."""


class Tracked:
    """Passes a run's progress on, and its metrics to trackers; they are opened with the plan, before the first step.

    Args:
        progress: hears everything.
        openers: make the trackers, given the first step that they will be told of.
    """

    def __init__(self, progress: Progress, openers: Sequence[Callable[[Plan], Tracker]]) -> None:
        self._progress = progress
        self._openers = openers
        self._trackers: list[Tracker] = []

    def said(self, text: str) -> None:
        """Passed on."""
        self._progress.said(text)

    def tokenised(self, done: int, total: int, tokens: int) -> None:
        """Passed on."""
        self._progress.tokenised(done, total, tokens)

    def planned(self, plan: Plan, model: Model) -> None:
        """Open the trackers."""
        self._trackers = [opener(plan) for opener in self._openers]
        self._progress.planned(plan, model)

    def stepped(self, metrics: StepMetrics, steps: int) -> None:
        """Track a step."""
        for tracker in self._trackers:
            tracker.log(metrics.step, scalars_of(metrics))
        self._progress.stepped(metrics, steps)

    def saved(self, checkpoint: Path, write_s: float, hash_s: float) -> None:
        """Passed on."""
        self._progress.saved(checkpoint, write_s, hash_s)

    def closed(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()
        self._progress.closed()


def tracked(job: Job, progress: Progress) -> Progress:
    """The progress with the job's trackers.

    Raises:
        InputError: one is asked for whose package is not here.
    """
    openers: list[Callable[[Plan], Tracker]] = []
    if job.tensorboard:
        _need("tensorboard", "--tensorboard")
        openers.append(lambda _plan: TensorBoard(job.out / "tensorboard"))
    if job.wandb is not None:
        _need("wandb", "--wandb")
        project = job.wandb
        openers.append(lambda plan: WeightsAndBiases(project, job.out, _facts(job, plan)))
    return Tracked(progress, openers) if openers else progress


def scalars_of(metrics: StepMetrics) -> dict[str, float]:
    """A step's figures by the names of metrics.jsonl, a rank's memory as `peak_bytes/RANK`; those that are numbers."""
    values = {name: getattr(metrics, name) for name in StepMetrics.__slots__ if name not in ("step", "peak_bytes")}
    values["eval_perplexity"] = metrics.eval_perplexity
    values |= {f"peak_bytes/{rank}": own for rank, own in enumerate(metrics.peak_bytes)}
    return {name: float(value) for name, value in values.items() if value is not None and isfinite(value)}


class TensorBoard:
    """Event files in a folder; a resumed run goes on in the same one."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def log(self, step: int, scalars: Scalars) -> None:
        """A point on the curve of each figure."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, told apart by an id in RUN/wandb.id, so that a resumed run goes on with it.

    Raises:
        InputError: there is no login, or its servers refuse or cannot be reached.
    """

    def __init__(self, project: str, out: Path, facts: Mapping[str, Any]) -> None:
        import wandb

        path = out / "wandb.id"
        if not path.is_file():
            path.write_text(secrets.token_hex(4) + "\n")
        try:
            self._run: Any = wandb.init(
                project=project,
                id=path.read_text().strip(),
                name=out.resolve().name,
                dir=str(out),
                config=dict(facts),
                resume="allow",
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:  # no login, no network, a project that may not be written
            reason = " ".join(str(error).split()).rstrip(".")
            raise InputError(
                f"--wandb {project}: {reason}; WANDB_MODE=offline in the environment would do too"
            ) from None

    def log(self, step: int, scalars: Scalars) -> None:
        """A point on the curve of each figure."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """Upload the rest."""
        self._run.finish()


def _facts(job: Job, plan: Plan) -> dict[str, Any]:
    return {
        "model": plan.model,
        "schedule": plan.schedule,
        "ranks": len(plan.ranks),
        "global_batch_size": plan.global_batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "seq_length": plan.seq_length,
        "lr": job.learning_rate,
        "steps": job.steps,
        "seed": job.seed,
    }


def _need(package: str, option: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError:
        raise InputError(
            f"{option} needs the package {package}, which is not here; `pip install 'evenflow[{package}]'` brings it"
        ) from None
