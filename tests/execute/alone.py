"""Makes executors for tests: any rank of a program with tiny stages, among whatever peers a transport gives it."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from evenflow.execute import Executor
from evenflow.models import build_stage, draw_weights
from evenflow.program import Program, stages_of
from evenflow.runtime import Clock, Mesh, Optimizer, OptimizerSettings, Transport
from evenflow.spec import Recompute
from tests.conftest import TINY_LLAMA
from tests.parity.test_whole import cut

SHAPE = (2, 16)


def make_executor(
    program: Program,
    rank: int,
    transport: Transport,
    config: dict[str, Any] = TINY_LLAMA,
    optimizer: type[Optimizer] = Optimizer,
    clock: Clock | None = None,
    recompute: Recompute = "none",
    mesh: Mesh | None = None,
) -> Executor:
    """The executor of one rank; layers are cut evenly, weights drawn from one seed."""
    settings = dict(config)
    hf_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    split = cut(config["num_hidden_layers"] + 2, program.stages)
    stages = {
        number: build_stage(hf_config, split[number], recompute=recompute)
        for number in stages_of(program.stage_rank, rank)
    }
    for stage in stages.values():
        draw_weights(stage, 3)
    parameters = {name: own for stage in stages.values() for name, own in stage.named_model_parameters().items()}
    names = next(iter(stages.values())).anatomy.parameters
    updates = None if program.forward_only else optimizer(parameters, names, OptimizerSettings())
    return Executor(program, rank, stages, transport, updates, (*SHAPE, hf_config.hidden_size), clock, mesh=mesh)


def is_empty(executor: Executor) -> bool:
    """Whether nothing of a step is left."""
    left: tuple[Any, ...] = (
        executor._receives,
        executor._gradient_receives,
        executor._sends,
        executor._gradient_sends,
        executor._outputs,
        executor._gradients,
        executor._buffers,
        *(own for runner in executor.runners.values() for own in (runner._flights, runner._losses)),
    )
    return not any(left) and len(executor.pool._free) == executor.pool.made
