"""Other layouts of the demo have the loss curve of one process: a few steps of a tiny model would not tell.

At the demo's learning rate the model soon comes to where each step makes a difference several times as large, whatever
made it: runs of one process that cut the same batches into other microbatches part there too. Curves are held to each
other until then, while the loss falls from 9.6 to 6.8; and at a gentler rate to the demo's last step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

import evenflow
from evenflow.cli import demo
from evenflow.files import StepMetrics
from evenflow.train import Job

TOLERANCE = 1e-5
# Learning rate and steps: as the demo until curves part, and more gently all the way.
RATES = {"demo": (demo._LEARNING_RATE, 16), "gentle": (demo._LEARNING_RATE / 20, demo._STEPS)}
Curve = tuple[StepMetrics, ...]


@pytest.fixture(scope="module")
def train_demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Curve]:
    """Train the demo's model on its data, with its batch, at one of the rates; each run once."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "config.json").write_text(json.dumps(demo.DEMO_CONFIG))
    data = demo._standard_library(folder / "library")

    @cache
    def run(name: str, **layout: int) -> Curve:
        rate, steps = RATES[name]
        job = Job(
            model=str(folder),
            data=data,
            out=folder / "-".join([name, *map(str, layout.items())]),
            steps=demo._STEPS,
            stop_at=steps,
            global_batch_size=demo._GLOBAL_BATCH,
            micro_batch_size=demo._MICRO_BATCH,
            seq_length=demo._SEQ_LENGTH,
            learning_rate=rate,
        )
        return tuple(evenflow.train(replace(job, **layout)).metrics)

    return run


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("axis", ["tp", "dp"])
def test_2_x_pp_2_has_the_loss_curve_of_one_process_on_the_demos_data(
    train_demo: Callable[..., Curve], name: str, axis: str
) -> None:
    alone, split = train_demo(name, processes=1), train_demo(name, pp=2, **{axis: 2})
    errors = [abs(own.loss / other.loss - 1) for own, other in zip(split, alone, strict=True)]
    assert len(errors) == RATES[name][1]
    print(
        f"{name}, {axis} 2 x pp 2: losses {alone[0].loss:.4f} to {alone[-1].loss:.4f}, worst relative error "
        f"{max(errors):.1e}"
    )
    assert max(errors) <= TOLERANCE
