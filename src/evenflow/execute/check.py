"""Proves on this machine that a split model equals the whole one, on a small copy of its architecture.

Splitting a Hugging Face model relies on how its code is written. What prevents it is looked for beforehand
(`models.obstacle`), but nobody is asked to believe that all is found: the whole small model and its stages run on the
same microbatches, and loss and every gradient must agree. The whole one runs in our code too, so it is held against
plain transformers first: what whole and stages have wrong alike would else not show.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from evenflow.errors import InputError, NotEqualError, first_line
from evenflow.execute.runner import StageRunner
from evenflow.execute.shrink import shrink
from evenflow.models import (
    Microbatch,
    Stage,
    build_skeleton,
    build_stage,
    count_layers,
    draw_weights,
    dropouts,
    drops_out,
    silence,
)

TOLERANCE = 1e-6
_MICROBATCHES = 2
_SHAPE = (2, 16)
PREDICTED = _MICROBATCHES * _SHAPE[0] * (_SHAPE[1] - 1)  # tokens of all microbatches
SEED = 11
_STIR = 0.02
_MOST_PARAMETERS = 30_000_000

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What was checked.

    Attributes:
        cuts: the splits that were tried, as the first layer of each stage.
        worst_error: the largest relative error of the loss or of any gradient, plain transformers' included.
        worst_tensor: where it was.
    """

    cuts: tuple[tuple[int, ...], ...]
    worst_error: float
    worst_tensor: str


def check_split(config: PretrainedConfig) -> CheckResult:
    """Compare the whole model with plain transformers, and its splits into 2 stages, at every cut, and 3 with it.

    A weight that head and embedding share has a half of its gradient on each of two stages; their sum is compared.

    Raises:
        InputError: they differ (where, by how much), the model skips whole blocks at random, or it cannot be tried.
    """
    refuse_layerdrop(config)
    small, layers, whole = small_whole(config)
    wanted = [*((0, cut) for cut in range(1, layers)), (0, 2, layers - 1)]
    cuts = tuple(cut for cut in wanted if list(cut) == sorted(set(cut)))
    found = [_against_plain(small, layers, whole)]
    for cut in cuts:
        worst, where = _difference(_try(small, cut, layers), whole)
        if worst > TOLERANCE:
            raise NotEqualError(
                f"{config.model_type} does not split: cut before layer {cut[-1]}, {where} differs from the whole "
                f"model's by {worst:.1e} (relative; {TOLERANCE:.0e} is allowed), so its code does something "
                "between its layers that a stage does not see; a single process trains it whole"
            )
        found.append((worst, where))
    worst, where = max(found)
    return CheckResult(cuts, worst, where)


def refuse_layerdrop(config: PretrainedConfig) -> None:
    """Which blocks are skipped is drawn between blocks, where no layer has a seed of its own.

    Raises:
        InputError: the model does so, and which field says so.
    """
    for name, value in dropouts(config).items():
        if value > 0 and name.endswith("layerdrop"):
            raise InputError(
                f"{config.model_type} skips blocks at random ({name} = {value}), which would differ between stages "
                f"and between the processes of one; {name} = 0.0 in its config, or a single process, would do"
            )


def small_whole(config: PretrainedConfig) -> tuple[PretrainedConfig, int, dict[str, Tensor]]:
    """The small copy, its layers and its results."""
    return small_copy(config, lambda small, layers: _run(small, (0,), layers))


def small_copy(
    config: PretrainedConfig, run: Callable[[PretrainedConfig, int], Result]
) -> tuple[PretrainedConfig, int, Result]:
    """The small copy, its layers and what it came to; where narrowing does not make a model, its own widths are kept.

    Raises:
        InputError: it cannot be run either way.
    """
    reason = ""
    for widths in (True, False):
        try:
            small = shrink(config, widths)
            layers, parameters = count_layers(small)
            if parameters > _MOST_PARAMETERS:
                reason = reason or f"{parameters:,} parameters are left"
                continue
            return small, layers, run(small, layers)
        except Exception as error:  # an architecture may refuse sizes in any way; the last word is passed on
            reason = reason or first_line(error)
    raise InputError(f"{config.model_type} cannot be tried on a small copy: {reason}; --no-check goes on without")


def _against_plain(config: PretrainedConfig, layers: int, whole: Mapping[str, Tensor]) -> tuple[float, str]:
    """How far the whole model as we run it is from plain transformers, without dropout, which that draws otherwise.

    Both compute with the same kernels, so fp32 leaves nothing between them but the order of sums.

    Raises:
        NotEqualError: too far.
    """
    still = copy.deepcopy(config)
    dropped = {name for name, value in dropouts(config).items() if value > 0}
    for part in (still, still.get_text_config()):
        for name in dropped & vars(part).keys():
            setattr(part, name, 0.0)
    try:
        plain = _run_plain(still, layers)
        ours = _run(still, (0,), layers, still=True) if drops_out(build_skeleton(config), config) else whole
    except Exception as error:  # a model's own class may do anything where it is made and run whole
        raise InputError(
            f"{config.model_type} cannot be held against plain transformers: {first_line(error)}; --no-check goes on "
            "without"
        ) from None
    worst, where = _difference(ours, plain)
    if worst > TOLERANCE:
        raise NotEqualError(
            f"{config.model_type} does not train as it should: unsplit, {where} differs from plain transformers' by "
            f"{worst:.1e} (relative; {TOLERANCE:.0e} is allowed), so its losses or gradients are made or added up "
            "otherwise here; transformers' own Trainer would train it"
        )
    return worst, where


def _difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest relative error of all results, and whose it is; infinite where one is no number."""
    errors = [(relative_error(found[name], own), name) for name, own in expected.items()]
    return max((math.inf if math.isnan(error) else error, name) for error, name in errors)


def _try(config: PretrainedConfig, cut: Sequence[int], layers: int) -> dict[str, Tensor]:
    try:
        return _run(config, cut, layers)
    except InputError:
        raise
    except Exception as error:  # whatever a model's code does with a layer that only hands its input on
        raise InputError(
            f"{config.model_type} does not split: cut before layer {cut[-1]}, its code fails ({first_line(error)}); "
            "a single process trains it whole"
        ) from None


def _run(config: PretrainedConfig, cut: Sequence[int], layers: int, still: bool = False) -> dict[str, Tensor]:
    """Loss and gradients after two microbatches; `cut` is the first layer of each stage, and `still` drops nothing."""
    ends = [*cut[1:], layers]
    runners: list[StageRunner] = []
    for first, end in zip(cut, ends, strict=True):
        stage = _stage(config, range(first, end)).train()
        if still:
            silence(stage)
        runners.append(StageRunner(stage, _MICROBATCHES))
        runners[-1].begin_step(PREDICTED)
    for microbatch, ids in enumerate(check_batches(config)):
        hidden = ids
        for runner in runners:
            hidden = runner.forward(microbatch, hidden, Microbatch(ids), SEED)
        gradient: Tensor | None = None
        for runner in reversed(runners):
            gradient = runner.backward(microbatch, gradient)
    results = {"loss": torch.tensor(sum(runners[-1].take_losses()))}
    for runner in runners:
        for name, parameter in runner.stage.named_model_parameters().items():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            results[name] = results[name] + gradient if name in results else gradient
    return results


def _run_plain(config: PretrainedConfig, layers: int) -> dict[str, Tensor]:
    """The same of transformers' own model with the same weights, and nothing of ours in how it is run."""
    stage = _stage(config, range(layers))
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    model.load_state_dict(stage.model.state_dict())
    silence(model.train())
    total = 0.0
    for ids in check_batches(config):
        mean = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss = mean * (ids[:, 1:].numel() / PREDICTED)
        loss.backward()
        total += float(loss.detach())
    tied = stage.anatomy.tied
    gradients = {
        tied.get(name, name): torch.zeros_like(own) if own.grad is None else own.grad
        for name, own in model.named_parameters()
    }
    return {"loss": torch.tensor(total), **gradients}


def _stage(config: PretrainedConfig, layers: Sequence[int]) -> Stage:
    stage = build_stage(config, layers)
    draw_weights(stage, SEED)
    stir(stage)
    return stage


def check_batches(config: PretrainedConfig) -> list[Tensor]:
    """The microbatches' token ids [batch, seq] that models are compared on."""
    generator = torch.Generator().manual_seed(SEED)
    vocabulary = config.get_text_config().vocab_size
    return [torch.randint(1, vocabulary, _SHAPE, generator=generator) for _ in range(_MICROBATCHES)]


@torch.no_grad()
def stir(stage: Stage) -> None:
    """Move every weight a little, by its name: what models start at zero or one would else hide what it does."""
    for name, parameter in stage.named_model_parameters().items():
        digest = hashlib.blake2b(name.encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=_STIR)


def relative_error(value: Tensor, expected: Tensor) -> float:
    """How far a tensor is from the expected one, relative to that one's norm."""
    scale = float(torch.linalg.vector_norm(expected))
    difference = float(torch.linalg.vector_norm(value - expected))
    return difference / scale if scale else difference
