"""Times real layers: forward, backward, norm and update of each kind of layer, on one rank among many busy ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from evenflow.cost import LayerCost
from evenflow.models import build_stage, draw_weights
from evenflow.runtime import Optimizer, OptimizerSettings

# Blocks are timed a few in a row: a block alone would find its weights in the cache, which a stage's do not.
_BLOCKS_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Repeats:
    """How often to time: at least `least` times, then until `seconds` are over."""

    least: int = 7
    seconds: float = 0.6


def time_layers(
    config: PretrainedConfig,
    signatures: Sequence[str],
    shape: tuple[int, int, int],
    repeats: Repeats,
    together: Callable[[], None],
) -> tuple[list[LayerCost], float, float]:
    """Time every layer of a model, each kind once.

    Args:
        config: the model's configuration.
        signatures: for each layer, what is equal for layers that cost the same.
        shape: batch, seq and hidden size of a microbatch.
        repeats: how often.
        together: returns once all ranks are here, so that all are busy at once.

    Returns:
        The layers' costs, and a stage's own forward and backward seconds.
    """
    empty_forward, empty_backward, _, _ = _time_stage(config, (), shape, repeats, together)
    costs: dict[str, LayerCost] = {}
    for signature in dict.fromkeys(signatures):
        row = [layer for layer, own in enumerate(signatures) if own == signature][:_BLOCKS_IN_A_ROW]
        forward, backward, norm, update = _time_stage(config, row, shape, repeats, together)
        costs[signature] = LayerCost(
            forward_s=max(forward - empty_forward, 0.0) / len(row),
            backward_s=max(backward - empty_backward, 0.0) / len(row),
            norm_s=norm / len(row),
            optimizer_s=update / len(row),
        )
    return [costs[signature] for signature in signatures], empty_forward, empty_backward


def _time_stage(
    config: PretrainedConfig,
    layers: Sequence[int],
    shape: tuple[int, int, int],
    repeats: Repeats,
    together: Callable[[], None],
) -> tuple[float, float, float, float]:
    """Median seconds of forward, backward, norm and update of a stage that holds `layers`."""
    batch, seq, hidden = shape
    stage = build_stage(config, layers)
    draw_weights(stage, seed=0)
    ids = torch.randint(0, config.get_text_config().vocab_size, (batch, seq))
    feed = ids if stage.is_first else torch.randn(batch, seq, hidden)
    gradient = None if stage.is_last else torch.randn(batch, seq, hidden)
    together()
    forwards: list[float] = []
    backwards: list[float] = []
    end = time.perf_counter() + repeats.seconds
    while len(forwards) < repeats.least + 2 or time.perf_counter() < end:
        leaf = feed if stage.is_first else feed.detach().requires_grad_()
        start = time.perf_counter()
        output = stage(leaf, ids)
        middle = time.perf_counter()
        if output.requires_grad:
            torch.autograd.backward(output, gradient)
        forwards.append(middle - start)
        backwards.append(time.perf_counter() - middle)
        del output
    parameters = stage.named_model_parameters()
    norm, update = _time_update(parameters, together) if parameters else (0.0, 0.0)
    return median(forwards[2:]), median(backwards[2:]), norm, update


def _time_update(parameters: dict[str, torch.nn.Parameter], together: Callable[[], None]) -> tuple[float, float]:
    optimizer = Optimizer(parameters, tuple(parameters), OptimizerSettings())
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    norms: list[float] = []
    updates: list[float] = []
    together()
    for _ in range(5):
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        start = time.perf_counter()
        vector = optimizer.gradient_norms()
        middle = time.perf_counter()
        optimizer.step(vector, 1e-6)
        norms.append(middle - start)
        updates.append(time.perf_counter() - middle)
    return median(norms[1:]), median(updates[1:])


def time_matmul(size: int = 1024) -> float:
    """Floating-point operations a second of a large matrix product."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    seconds: list[float] = []
    for _ in range(8):
        start = time.perf_counter()
        _product: Tensor = left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return sorted(values)[len(values) // 2]
