"""Other layouts of the demo have the loss curve of one process: a few steps of a tiny model would not tell.

At the demo's learning rate the model soon comes to where each step makes a difference several times as large, whatever
made it: runs of one process that cut the same batches into other microbatches part there too. Curves are held to each
other until then, while the loss falls from 9.6 to 6.8.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

import evenflow
from evenflow.cli import demo
from evenflow.files import StepMetrics
from evenflow.train import Job

TOLERANCE = 1e-5
STEPS = 16


@pytest.fixture(scope="module")
def train_demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[StepMetrics, ...]]:
    """Train the demo's model on its data for its first steps, with its batch and its learning rates."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "config.json").write_text(json.dumps(demo.DEMO_CONFIG))
    job = Job(
        model=str(folder),
        data=demo._standard_library(folder / "library"),
        out=folder / "run",
        steps=demo._STEPS,
        stop_at=STEPS,
        global_batch_size=demo._GLOBAL_BATCH,
        micro_batch_size=demo._MICRO_BATCH,
        seq_length=demo._SEQ_LENGTH,
        learning_rate=demo._LEARNING_RATE,
    )

    def run(name: str, **layout: int) -> tuple[StepMetrics, ...]:
        return tuple(evenflow.train(replace(job, out=folder / name, **layout)).metrics)

    return run


@pytest.fixture(scope="module")
def alone(train_demo: Callable[..., tuple[StepMetrics, ...]]) -> tuple[StepMetrics, ...]:
    return train_demo("alone", processes=1)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("axis", ["tp", "dp"])
def test_2_x_pp_2_has_the_loss_curve_of_one_process_on_the_demos_data(
    train_demo: Callable[..., tuple[StepMetrics, ...]], alone: tuple[StepMetrics, ...], axis: str
) -> None:
    split = train_demo(axis, pp=2, **{axis: 2})
    errors = [abs(own.loss / other.loss - 1) for own, other in zip(split, alone, strict=True)]
    assert len(errors) == STEPS
    print(
        f"{axis} 2 x pp 2: losses {alone[0].loss:.4f} to {alone[-1].loss:.4f}, worst relative error {max(errors):.1e}"
    )
    assert max(errors) <= TOLERANCE
