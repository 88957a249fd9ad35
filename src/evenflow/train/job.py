"""A training job: what to train, on what, for how long; checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from evenflow.errors import InputError
from evenflow.files import check_settings
from evenflow.spec import Batch, Recompute


@dataclass(frozen=True, slots=True)
class Job:
    """One training run; its settings are the keys of a job file, held to the same ranges.

    Attributes:
        model: a Hugging Face directory, a config.json or a hub id.
        data: a text file, or a folder of them.
        out: the run's folder; it must not exist yet or be empty, but for `resume`.
        steps: optimizer updates.
        global_batch_size: sequences of a step; 16 by default.
        micro_batch_size: sequences of a microbatch; by default as many as leave every rank four microbatches.
        seq_length: tokens of a sequence; by default 256, or as many as the model reads.
        processes: pipeline ranks; by default as many as `--cluster local` has.
        threads: compute threads of each process; by default an equal slice of the cores.
        plan: a plan.json to follow; by default one is made from a profile.
        schedule: the schedule's name.
        recompute: `none` or `full`: what blocks do again in their backward; by default nothing.
        stages_per_rank: stages of each rank; by default as many as the schedule asks for.
        learning_rate: at its peak.
        seed: of weights (where they are drawn) and of the order of samples.
        memory_limit: bytes that a rank may use, by plan.
        from_scratch: draw weights even where some lie beside the config.
        check: prove first that the split model equals the whole one.
        resume: go on with the run in `out`, under this or another layout.
        stop_at: save and stop after this step, while the learning rate still spans `steps`.
        save_every: save after every so many steps, while the run goes on; by default only at its end.
        keep_last: how many of the newest checkpoints are kept.
        keep_every: beside them, those after every so many steps are.
        stop_on_nan: end the run, without saving, when its loss or gradient is not a number.
        measure_again: time layers even where a profile is cached.
    """

    model: str
    data: Path
    out: Path
    steps: int = 100
    global_batch_size: int | None = None
    micro_batch_size: int | None = None
    seq_length: int | None = None
    processes: int | None = None
    threads: int | None = None
    plan: Path | None = None
    schedule: str | None = None
    recompute: Recompute | None = None
    stages_per_rank: int | None = None
    learning_rate: float = 3e-4
    seed: int = 0
    memory_limit: int | None = None
    from_scratch: bool = False
    check: bool = True
    resume: bool = False
    stop_at: int | None = None
    save_every: int | None = None
    keep_last: int = 2
    keep_every: int | None = None
    stop_on_nan: bool = True
    measure_again: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "out", "plan"):  # strings are what a script has at hand
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        check_settings({item.name: getattr(self, item.name) for item in fields(self)})
        if self.stop_at is not None and not 1 <= self.stop_at <= self.steps:
            raise InputError(f"--stop-at {self.stop_at} is not one of the run's steps; 1 to {self.steps} would do")


def lasting_settings(job: Job, batch: Batch) -> dict[str, str | int | float | bool | None]:
    """What makes a run what it is, by the job file's keys: a resumed run has the same."""
    return {
        "seed": job.seed,
        "global_batch_size": batch.global_batch_size,
        "micro_batch_size": batch.micro_batch_size,
        "seq_length": batch.seq_length,
        "lr": job.learning_rate,
        "steps": job.steps,
    }
