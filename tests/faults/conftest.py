"""What the tests of faults share: a server that lets them happen, a small job, and the run that had none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import pytest
import torch

import evenflow
from evenflow.files import StepMetrics
from evenflow.train import Job, RunResult, Silent
from tests.conftest import TINY_LLAMA
from tests.faults.injection import Faults, faulty_server
from tests.train.test_resume import tensors_of

STEPS, SAVE_EVERY = 12, 3


@dataclass
class Hears(Silent):
    """Notes when what was said, when steps were done, and what was saved while the run went on."""

    lines: list[tuple[float, str]] = field(default_factory=list)
    steps: list[tuple[float, int]] = field(default_factory=list)
    saves: list[Path] = field(default_factory=list)

    def said(self, text: str) -> None:
        self.lines.append((time.time(), text))

    def stepped(self, metrics: StepMetrics, steps: int) -> None:
        self.steps.append((time.time(), metrics.step))

    def saved(self, checkpoint: Path, write_s: float, hash_s: float) -> None:
        self.saves.append(checkpoint)

    def when(self, start: str) -> list[float]:
        """When lines that begin so were said."""
        return [moment for moment, line in self.lines if line.startswith(start)]

    def starting(self, start: str) -> list[str]:
        """Lines that begin so."""
        return [line for _, line in self.lines if line.startswith(start)]

    def step_after(self, moment: float) -> float:
        """When the first step after a moment was done."""
        return min(done for done, _ in self.steps if done > moment)


@pytest.fixture(scope="package")  # other rooms' tests get a server without faults again
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    with faulty_server(tmp_path_factory.mktemp("faulty")) as own:
        yield own


@pytest.fixture(autouse=True)
def _no_fault_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "faults" in request.fixturenames:
        request.getfixturevalue("faults").clear()


@pytest.fixture(scope="package")
def whole(faults: Faults, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, RunResult]:
    """A small job, and what it comes to where nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(TINY_LLAMA))
    (folder / "text.txt").write_text("".join(f"{n} times {n} is {n * n}\n" for n in range(900)))
    job = Job(
        model=str(folder / "model"),
        data=folder / "text.txt",
        out=folder / "whole",
        steps=STEPS,
        global_batch_size=8,
        micro_batch_size=2,
        seq_length=32,
        processes=2,
        learning_rate=1e-3,
        check=False,
        save_every=SAVE_EVERY,
    )
    result = evenflow.train(job)
    return replace(job, plan=job.out / "plan.json"), result


def same_weights(first: Path, second: Path, step: int = STEPS) -> bool:
    """Whether two runs' last checkpoints and models are equal to the last bit."""
    parts = (f"checkpoints/step-{step:08d}", "model")
    for part in parts:
        one, other = tensors_of(first / part), tensors_of(second / part)
        if one.keys() != other.keys() or not one or not all(torch.equal(one[name], other[name]) for name in one):
            return False
    return True


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Prints how often, the median and the worst of some seconds, or of what else, past pytest's capture."""

    def say(what: str, values: Sequence[float], unit: str = "s", digits: int = 2) -> None:
        middle, worst = (f"{own:.{digits}f} {unit}" for own in (median(values), max(values)))
        with capsys.disabled():
            print(f"\n{what}: n {len(values)}, median {middle}, worst {worst}")

    return say
