"""A program that is forward only: the whole model's loss, nothing kept, and training goes on as if it had not been."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from evenflow.execute import Executor, StepResult
from evenflow.program import Program, build_program, evaluation_program, place, verify
from evenflow.runtime import InMemoryNetwork
from tests.conftest import TINY_LLAMA
from tests.execute.alone import SHAPE, is_empty, make_executor
from tests.parity.ranks import tokens_of
from tests.parity.test_whole import whole_model

MICROBATCHES = 5


def tokens(step: int, microbatch: int) -> torch.Tensor:
    return tokens_of(step, microbatch, *SHAPE, TINY_LLAMA["vocab_size"])


def run_all(executors: list[Executor], step: int = 1) -> list[StepResult]:
    with ThreadPoolExecutor(len(executors)) as pool:
        return list(pool.map(lambda own: own.run_step(lambda k: tokens(step, k), 1e-3), executors))


def executors_of(program: Program, network: InMemoryNetwork | None = None) -> list[Executor]:
    torch.set_num_threads(1)
    verify(program)
    network = network or InMemoryNetwork(len(program.ranks), timeout_s=30)
    return [make_executor(program, rank, network.transport(rank)) for rank in range(len(program.ranks))]


@pytest.mark.parametrize(
    ("placement", "ranks", "stages"), [("loop", 1, 1), ("loop", 2, 2), ("v", 2, 4), ("loop", 2, 3)]
)
def test_the_loss_is_that_of_the_whole_model(placement: str, ranks: int, stages: int) -> None:
    executors = executors_of(evaluation_program(place(placement, ranks, stages), MICROBATCHES))
    results = run_all(executors)
    expected, _ = whole_model(TINY_LLAMA, 3, MICROBATCHES, SHAPE)
    assert {result.loss for result in results} == {results[0].loss}
    assert results[0].loss == pytest.approx(expected, rel=1e-6)
    last = executors[place(placement, ranks, stages)[-1]]
    each = next(result.losses for own, result in zip(executors, results, strict=True) if own is last)
    assert len(each) == MICROBATCHES
    assert sum(each) == pytest.approx(expected, rel=1e-6)
    for own in executors:
        assert is_empty(own)
        assert all(parameter.grad is None for runner in own.runners.values() for parameter in runner.stage.parameters())


def test_training_goes_on_as_if_there_had_been_no_evaluation() -> None:
    """Both executors run the same stages: the second must neither take the first's queues nor leave its mode behind."""
    weights = []
    for evaluates in (False, True):
        network = InMemoryNetwork(2, timeout_s=30)
        training = executors_of(build_program("zb-h1", 2, MICROBATCHES), network)
        program = evaluation_program((0, 1), MICROBATCHES)
        between = [
            Executor(
                program,
                own.rank,
                {number: runner.stage for number, runner in own.runners.items()},
                own.transport,
                None,
                own._boundary,
            )
            for own in training
        ]
        for step in range(3):
            run_all(training, step)
            if evaluates:
                run_all(between, 100)
                assert all(runner.stage.training for own in training for runner in own.runners.values())
        assert training[0].optimizer is not None
        assert training[1].optimizer is not None
        weights.append(training[0].optimizer.parameters | training[1].optimizer.parameters)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_no_stage_drops_out_in_an_evaluation() -> None:
    executors = executors_of(evaluation_program((0, 1), 2))
    seen: list[bool] = []
    for own in executors:
        for runner in own.runners.values():
            runner.stage.train()
            runner.stage.model.register_forward_pre_hook(lambda module, _: seen.append(module.training))
            runner.stage.model.base_model.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    run_all(executors)
    assert seen
    assert not any(seen)
