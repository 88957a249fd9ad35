"""A training job: what to train, on what, for how long; checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from evenflow.errors import InputError
from evenflow.files import check_settings
from evenflow.plan import Axes, Zero, check_zero, choose_axes
from evenflow.runtime import OptimizerSettings
from evenflow.spec import DEFAULT_DTYPE, Batch, Dtype, RecomputeWish
from evenflow.train.lr_schedule import LrKind, LrSchedule
from evenflow.train.sequences import PackingKind


@dataclass(frozen=True, slots=True)
class Job:
    """One training run; its settings are the keys of a job file, held to the same ranges.

    Attributes:
        model: a Hugging Face directory, a config.json or a hub id.
        data: a file or a folder: plain text, JSON lines, parquet, or a dataset on disk.
        out: the run's folder; it must not exist yet or be empty, but for `resume`.
        steps: optimizer updates.
        global_batch_size: sequences of a step; 16 by default.
        micro_batch_size: sequences of a microbatch; by default as many as leave every rank four microbatches.
        seq_length: tokens of a sequence; by default 256, or as many as the model reads.
        processes: of the whole job; by default as many as `--cluster local` has, or as the axes ask for.
        pp: pipeline ranks; by default all that the other axes leave.
        tp: processes that share the tensors of each stage; by default 1.
        dp: data-parallel replicas; by default 1.
        zero: what replicas share out: nothing (0), or with 1 the optimizer's state; by default nothing.
        threads: compute threads of each process; by default an equal slice of the cores.
        plan: a plan.json to follow; by default one is made from a profile.
        schedule: the schedule's name.
        recompute: what blocks run again in their backward: `none` (by default), `selective`, `full`, or with `auto` as
            little as fits the memory limit.
        stages_per_rank: stages of each rank; by default as many as the schedule asks for.
        learning_rate: at its peak.
        lr_schedule: `cosine`, `linear` or `wsd`: how the rate falls after the warm-up.
        warm_up: steps until the peak; by default a tenth of them, at most 100.
        decay: steps in which `wsd` falls at the end; by default a tenth of them.
        lr_end: the last rate, as a share of the peak.
        beta1: how much AdamW keeps of its first moment.
        beta2: how much of its second.
        epsilon: what AdamW adds to its divisor.
        weight_decay: of parameters with two or more dimensions.
        undecayed: patterns of parameters not to decay either, separated by commas.
        clip_norm: the gradient's norm is clipped here; 0 for never.
        z_loss: so much of the mean squared log of the softmax's divisor is added to the loss; 0 for nothing.
        dtype: of weights, activations and messages: `fp32` (by default), or `bf16` with master weights in fp32.
        seed: of weights (where they are drawn) and of the order of samples.
        memory_limit: bytes that a rank may use, by plan.
        from_scratch: draw weights even where some lie beside the config.
        check: prove first that the split model equals the whole one.
        resume: go on with the run in `out`, under this or another layout.
        stop_at: save and stop after this step, while the learning rate still spans `steps`.
        data_format: `text`, `jsonl`, `parquet`, `dataset`, or `auto`, by the files' names.
        text_key: of a record's document.
        prompt_key: of what is read before an answer.
        answer_key: of the answer, which alone is learned.
        messages_key: of a conversation.
        packing: `stream`, `whole` or `padded`; by default whole where parts of the documents are not learned.
        separate_documents: whether documents in one sequence do not see each other; by default with `whole`.
        eval_every: evaluate after every so many steps, and after the last.
        eval_share: of the sequences, held out of training to be evaluated; by default a twentieth where that is asked.
        eval_data: evaluate on this file or folder instead, as `data` is read.
        eval_micro_batch_size: sequences of a microbatch of an evaluation; by default as in training.
        restarts: how often lost ranks are started again from the newest complete checkpoint, before a newer one.
        save_every: save after every so many steps, while the run goes on; by default only at its end.
        keep_last: how many of the newest checkpoints are kept.
        keep_every: beside them, those after every so many steps are.
        stop_on_nan: end the run, without saving, when its loss or gradient is not a number.
        tensorboard: write metrics for TensorBoard too.
        wandb: a project of Weights & Biases to send metrics to.
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
    pp: int | None = None
    tp: int | None = None
    dp: int | None = None
    zero: int | None = None
    threads: int | None = None
    plan: Path | None = None
    schedule: str | None = None
    recompute: RecomputeWish | None = None
    stages_per_rank: int | None = None
    learning_rate: float = 3e-4
    lr_schedule: LrKind = "cosine"
    warm_up: int | None = None
    decay: int | None = None
    lr_end: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    undecayed: str = ""
    clip_norm: float = 1.0
    z_loss: float = 0.0
    dtype: Dtype | None = None
    seed: int = 0
    memory_limit: int | None = None
    from_scratch: bool = False
    check: bool = True
    resume: bool = False
    stop_at: int | None = None
    data_format: str = "auto"
    text_key: str = "text"
    prompt_key: str = "prompt"
    answer_key: str = "answer"
    messages_key: str = "messages"
    packing: PackingKind | None = None
    separate_documents: bool | None = None
    eval_every: int | None = None
    eval_share: float | None = None
    eval_data: Path | None = None
    eval_micro_batch_size: int | None = None
    restarts: int = 3
    save_every: int | None = None
    keep_last: int = 2
    keep_every: int | None = None
    stop_on_nan: bool = True
    tensorboard: bool = False
    wandb: str | None = None
    measure_again: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "out", "plan", "eval_data"):  # strings are what a script has at hand
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        check_settings({item.name: getattr(self, item.name) for item in fields(self)})
        if self.stop_at is not None and not 1 <= self.stop_at <= self.steps:
            raise InputError(f"--stop-at {self.stop_at} is not one of the run's steps; 1 to {self.steps} would do")
        if self.warm_up is not None and self.warm_up >= self.steps:
            raise InputError(
                f"--warm-up {self.warm_up} leaves none of {self.steps} steps at the peak; "
                f"{self.steps - 1} or less would do"
            )

        if self.eval_data is not None and self.eval_share is not None:
            raise InputError(
                f"--eval-share {self.eval_share:g} would hold a part of --data out, and --eval-data is evaluated "
                "already; one of them would do"
            )

    @property
    def evaluates(self) -> bool:
        """Whether anything is evaluated."""
        return not (self.eval_every is None and self.eval_share is None and self.eval_data is None)

    @property
    def held_out_share(self) -> float:
        """The share of the sequences that is held out of training."""
        if not self.evaluates or self.eval_data is not None:
            return 0.0
        return _HELD_OUT if self.eval_share is None else self.eval_share

    def rates(self) -> LrSchedule:
        """The learning rate of each step."""
        return LrSchedule(self.steps, self.learning_rate, self.lr_schedule, self.warm_up, self.decay, self.lr_end)

    def optimizer(self) -> OptimizerSettings:
        """AdamW's settings."""
        undecayed = tuple(pattern.strip() for pattern in self.undecayed.split(",") if pattern.strip())
        return OptimizerSettings(self.beta1, self.beta2, self.epsilon, self.weight_decay, self.clip_norm, undecayed)

    def axes(self, started: int | None, here: int) -> Axes:
        """The axes that this job asks for.

        Args:
            started: how many processes torchrun started; None without it.
            here: how many processes this machine has where the job does not say.

        Raises:
            InputError: they do not make the number of processes that was asked for, or started.
        """
        fixed = self.processes or started
        if fixed is not None:
            return choose_axes(fixed, self.pp, self.tp, self.dp, exactly=True)
        others = (self.tp or 1) * (self.dp or 1)
        return choose_axes((self.pp or max(here // others, 1)) * others, self.pp, self.tp, self.dp)

    @property
    def zero_stage(self) -> Zero:
        """What replicas share out."""
        return check_zero(self.zero or 0)


_HELD_OUT = 0.05

_LASTING = (
    "seed", "steps", "lr_schedule", "warm_up", "decay", "lr_end", "beta1", "beta2", "epsilon", "weight_decay",
    "undecayed", "clip_norm", "packing", "separate_documents",
)  # fmt: skip


def lasting_settings(
    job: Job, batch: Batch, dtype: Dtype = DEFAULT_DTYPE
) -> dict[str, str | int | float | bool | None]:
    """What makes a run what it is, by the job file's keys: a resumed run has the same."""
    return {
        "global_batch_size": batch.global_batch_size,
        "micro_batch_size": batch.micro_batch_size,
        "seq_length": batch.seq_length,
        "lr": job.learning_rate,
        "eval_share": job.held_out_share or None,  # as in runs from before there was such a key
        "z_loss": job.z_loss or None,
        "dtype": dtype,
        **{key: getattr(job, key) for key in _LASTING},
    }
