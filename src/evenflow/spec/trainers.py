"""What each trainer that a plan may be for can run, and what it does beside computing."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from evenflow.errors import InputError

OURS = "evenflow"


@dataclass(frozen=True, slots=True)
class Trainer:
    """One trainer.

    Attributes:
        name: as `--for` takes it.
        schedules: that its ranks can follow, by our names.
        has_cp: whether it can share out sequences.
        has_ep: whether it can share out experts.
        halves_under_tp: whether it makes weight gradients apart from inputs' while tensors are shared out.
        whole_rounds: whether interleaved stages need microbatches that are a multiple of the pipeline's ranks.
        is_sequence_parallel: norms and residuals are shared out over tp.
        is_overlapped: gradients are added while the last microbatch goes back.
        is_tp_overlapped: what tp exchanges goes on beside the products next to it.
        is_gradient_overlapped: so does what it exchanges in a backward.
        recomputes: what `--recompute auto` may come to, the best of which is taken: all blocks alike (`none`,
            `selective`, `full`); `first`, the whole forward of the first blocks of each stage, equally many; `whole`,
            that of any blocks; `auto`, any mixture.
        selective: whether its selective recomputation is of attention alone, or of every operator but half of the
            products.
    """

    name: str
    schedules: tuple[str, ...]
    has_cp: bool = False
    has_ep: bool = False
    halves_under_tp: bool = False
    whole_rounds: bool = False
    is_sequence_parallel: bool = False
    is_overlapped: bool = False
    is_tp_overlapped: bool = False
    is_gradient_overlapped: bool = False
    recomputes: tuple[str, ...] = ("auto",)
    selective: str = "attention"

    @property
    def has_selective(self) -> bool:
        """Whether it recomputes a part of a block."""
        return self.recomputes != ("whole",)


# Megatron-LM's arguments.py and parallel_state.py, torchtitan's schedules (pipelining.schedules) and activation
# checkpointing, DeepSpeed's PipelineEngine (1F1B alone; no exchange of tp beside products).
TRAINERS: dict[str, Trainer] = {
    own.name: own
    for own in (
        Trainer(OURS, ("1f1b", "gpipe", "interleaved", "zb-h1", "zb-h2", "zb-v"), is_gradient_overlapped=False),
        Trainer(
            "megatron", ("1f1b", "interleaved"), has_cp=True, has_ep=True, whole_rounds=True,
            is_sequence_parallel=True, is_overlapped=True, is_tp_overlapped=True, is_gradient_overlapped=True,
            recomputes=("none", "selective", "first"),
        ),
        Trainer(
            "torchtitan", ("1f1b", "gpipe", "interleaved", "zb-v"), has_cp=True, has_ep=True, halves_under_tp=True,
            whole_rounds=True, is_sequence_parallel=True, is_overlapped=True,
            recomputes=("none", "selective", "full"), selective="operators",
        ),
        Trainer("deepspeed", ("1f1b",), is_overlapped=False, recomputes=("whole",)),
    )
}  # fmt: skip


def find_trainer(name: str) -> Trainer:
    """The trainer of a name.

    Raises:
        InputError: there is none; all names are given.
    """
    if name in TRAINERS:
        return TRAINERS[name]
    near = difflib.get_close_matches(name, list(TRAINERS), n=1, cutoff=0.4)
    said = f"{near[0]} is the nearest of {', '.join(TRAINERS)}" if near else f"{', '.join(TRAINERS)} would do"
    raise InputError(f"--for {name!r} is no trainer that plans are made for; {said}")
