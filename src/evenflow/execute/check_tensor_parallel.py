"""Proves that a model whose tensors are shared out equals the whole one, on a small copy, in threads of one process.

A model's plan names its modules, but its code may count on whole tensors all the same. What a run's processes would do
is done here by threads: loss and every gradient, gathered, must be those of the whole model. Models that drop out do so
here too: each thread draws what its process would.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from evenflow.errors import InputError, NotEqualError, first_line
from evenflow.execute.check import PREDICTED, SEED, check_batches, relative_error, small_whole, stir
from evenflow.execute.runner import StageRunner
from evenflow.models import (
    Microbatch,
    Stage,
    build_skeleton,
    build_stage,
    check_tensor_parallel,
    draw_weights,
    share_out,
    tp_plan_of,
)
from evenflow.runtime import MeetingInTurns, ThreadTensorGroup

# Parts are added up in another order, which ill-conditioned layers make 3e-5 of; a sum left out is off by tenths.
SHARES_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class SharesResult:
    """What was checked.

    Attributes:
        size: over how many threads the model was shared out.
        cut: how many of its parameters were cut.
        parameters: how many it has.
        worst_error: the largest relative error of the loss or of any gradient.
        worst_tensor: where it was.
    """

    size: int
    cut: int
    parameters: int
    worst_error: float
    worst_tensor: str


def check_shares(config: PretrainedConfig, tp: int) -> SharesResult:
    """Compare a small copy of a model, shared out over threads, with the whole of it.

    Args:
        config: the model's.
        tp: over how many processes it is to be shared out. The small copy, which may have fewer heads, is shared out
            over the least factor of that.

    Raises:
        InputError: it has no plan for that, its code does not run on parts, or it cannot be tried.
        NotEqualError: it differs (where, by how much).
    """
    size = next(factor for factor in range(2, tp + 1) if tp % factor == 0)
    small, layers, whole = small_whole(config)
    check_tensor_parallel(small, size)
    meeting = MeetingInTurns(size)
    stages = [_stage(small, layers, ThreadTensorGroup(meeting, index)) for index in range(size)]
    results = _in_threads(config, small, stages, meeting)
    sharing = stages[0].sharing
    assert sharing is not None, "it was shared out"
    worst, where = 0.0, "loss"
    for name, expected in whole.items():
        parts = [result[name] for result in results]
        cut = sharing.cuts.get(name)
        for value in [cut.join(parts)] if cut is not None else parts:
            error = relative_error(value, expected)
            if error > worst:
                worst, where = error, name
            if error > SHARES_TOLERANCE or error != error:
                raise NotEqualError(
                    f"{config.model_type} cannot be shared out over tp: {name} differs from the whole model's by "
                    f"{error:.1e} (relative; {SHARES_TOLERANCE:.0e} is allowed), so its code does something "
                    "that its base_model_tp_plan does not say; --tp 1 would do"
                )
    return SharesResult(size, len(sharing.cuts), len(whole) - 1, worst, where)


def _stage(config: PretrainedConfig, layers: int, group: ThreadTensorGroup) -> Stage:
    """This thread's part of the whole model, with the weights that the whole one has."""
    whole = build_stage(config, range(layers))
    draw_weights(whole, SEED)
    stir(whole)
    stage = build_stage(config, range(layers))
    sharing = share_out(stage, tp_plan_of(build_skeleton(config)), group)
    draw_weights(stage, SEED)
    with torch.no_grad():
        for name, parameter in stage.named_model_parameters().items():
            own = whole.named_model_parameters()[name]
            parameter.copy_(sharing.cuts[name].take(own) if name in sharing.cuts else own)
    return stage


def _in_threads(
    config: PretrainedConfig, small: PretrainedConfig, stages: list[Stage], meeting: MeetingInTurns
) -> list[dict[str, Tensor]]:
    """Loss and gradients of each thread's part."""

    def run(stage: Stage) -> dict[str, Tensor]:
        try:
            with meeting.turn():
                return _run(small, stage)
        except BaseException:
            meeting.give_up()
            raise

    with ThreadPoolExecutor(len(stages)) as pool:
        futures: list[Future[dict[str, Tensor]]] = [pool.submit(run, stage) for stage in stages]
        failed = [failure for own in futures if (failure := own.exception()) is not None]
    failed.sort(key=lambda failure: "Barrier" in type(failure).__name__)  # those that waited fail with the first
    if failed:
        raise InputError(
            f"{config.model_type} cannot be shared out over tp: with a part of its tensors its code fails "
            f"({first_line(failed[0])}); --tp 1 would do"
        ) from None
    return [own.result() for own in futures]


def _run(config: PretrainedConfig, stage: Stage) -> dict[str, Tensor]:
    batches = check_batches(config)
    runner = StageRunner(stage.train(), len(batches))
    runner.begin_step(PREDICTED)
    for microbatch, ids in enumerate(batches):
        runner.forward(microbatch, ids, Microbatch(ids), SEED)
        runner.backward(microbatch, None)
    results = {"loss": torch.tensor(sum(runner.take_losses()))}
    for name, parameter in stage.named_model_parameters().items():
        results[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return results
