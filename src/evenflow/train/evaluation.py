"""The loss of sequences that are held out of training, found by the stages that train, between two steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from evenflow.execute import Executor
from evenflow.program import evaluation_program, verify
from evenflow.runtime import Mesh
from evenflow.train.batches import Batch
from evenflow.train.sequences import Sequences

_MOST_MICROBATCHES = 64  # of one run of the program: a longer one would take long to make, and to stop


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What is evaluated.

    Attributes:
        sequences: what they are cut from.
        ids: which of them; none is trained on.
        micro_batch_size: sequences of a microbatch.
    """

    sequences: Sequences
    ids: Sequence[int]
    micro_batch_size: int


class Evaluator:
    """Runs a program that is forward only, over the stages of one rank.

    Args:
        training: what trains the stages.
        mesh: where this process is.
        held_out: what is evaluated.
        hidden_size: numbers of a token that cross stages.
        device: where the stages are.
    """

    def __init__(
        self, training: Executor, mesh: Mesh, held_out: HeldOut, hidden_size: int, device: torch.device
    ) -> None:
        self._training = training
        self._held_out = held_out
        self._device = device
        self._replica, self._replicas = mesh.at.dp, mesh.axes.dp
        self._microbatches, self._runs = runs_of(len(held_out.ids), held_out.micro_batch_size * self._replicas)
        program = evaluation_program(training.program.stage_rank, self._microbatches)
        verify(program)
        self._executor = Executor(
            program,
            training.rank,
            {number: runner.stage for number, runner in training.runners.items()},
            training.transport,
            None,
            (held_out.micro_batch_size, held_out.sequences.seq_length, hidden_size),
            mesh=mesh,
            crossing=training.crossing,
            heartbeat=training.heartbeat,
        )

    def loss(self, tell: Callable[[str], None]) -> float:
        """The mean loss over all predicted tokens, the same on every rank; every process has to ask for it at once.

        Args:
            tell: is told what is being done.
        """
        sequences, ids = self._held_out.sequences, list(self._held_out.ids)
        size = self._held_out.micro_batch_size
        predicted = sum(map(sequences.predicted, ids))
        a_run = self._microbatches * size * self._replicas
        total = 0.0
        for run in range(self._runs):
            tell(f"evaluating, part {run + 1} of {self._runs}")
            own = ids[run * a_run : (run + 1) * a_run]
            filled = own + [ids[0]] * (a_run - len(own))
            batch = Batch(sequences, filled, size, self._replica, self._replicas, self._device, counted=len(own))
            # Each run is a share of the whole, so that the shares add up to the mean over all tokens.
            total += self._executor.run_step(batch, predicted=predicted, lengths=batch.lengths).loss
        self._executor.pool.empty()
        self._training.starts_now()
        return total


def runs_of(sequences: int, at_once: int) -> tuple[int, int]:
    """The microbatches of a run of the program, and how many runs there are: as few as may be, and even.

    Args:
        sequences: to evaluate.
        at_once: those in a microbatch of every replica.
    """
    microbatches = -(-sequences // at_once)
    runs = -(-microbatches // _MOST_MICROBATCHES)
    return -(-microbatches // runs), runs
