"""A training job: what to train, on what, for how long; checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evenflow.errors import InputError
from evenflow.plan import Axes, Zero, check_zero, choose_axes
from evenflow.spec import Recompute, check_recompute


@dataclass(frozen=True, slots=True)
class Job:
    """One training run.

    Attributes:
        model: a Hugging Face directory, a config.json or a hub id.
        data: a text file, or a folder of them.
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
        recompute: `none` or `full`: what blocks do again in their backward; by default nothing.
        stages_per_rank: stages of each rank; by default as many as the schedule asks for.
        learning_rate: at its peak.
        seed: of weights (where they are drawn) and of the order of samples.
        memory_limit: bytes that a rank may use, by plan.
        from_scratch: draw weights even where some lie beside the config.
        check: prove first that the split model equals the whole one.
        resume: go on with the run in `out`, under this or another layout.
        stop_at: save and stop after this step, while the learning rate still spans `steps`.
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
    recompute: Recompute | None = None
    stages_per_rank: int | None = None
    learning_rate: float = 3e-4
    seed: int = 0
    memory_limit: int | None = None
    from_scratch: bool = False
    check: bool = True
    resume: bool = False
    stop_at: int | None = None
    measure_again: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "out", "plan"):  # strings are what a script has at hand
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        if self.zero is not None:
            check_zero(self.zero)
        if self.recompute is not None:
            check_recompute(self.recompute)
        if self.steps < 1:
            raise InputError(f"--steps {self.steps} trains nothing; 1 would be the least")
        if self.stop_at is not None and not 1 <= self.stop_at <= self.steps:
            raise InputError(f"--stop-at {self.stop_at} is not one of the run's steps; 1 to {self.steps} would do")
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"--lr {self.learning_rate} is no learning rate; one above 0, such as 3e-4, would do")
        if self.stages_per_rank is not None and self.stages_per_rank < 1:
            raise InputError(f"--stages-per-rank {self.stages_per_rank} leaves nothing to run; 1 would be the least")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed:.6g} is not a seed; any whole number from 0 to 2^63 - 1 would do")

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
