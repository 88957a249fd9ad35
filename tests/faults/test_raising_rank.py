"""A rank that raises: all ranks stop within a second, and the error says who, in which action, and why."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evenflow.files import load_ranks
from tests.faults.raising import raising_environment

pytestmark = pytest.mark.alone  # all have to be gone within a second
RANKS = 3
# Each rank does 4 forwards a step, so the 6th is that of microbatch 1 in step 2.
CALL, ACTION, STEP = 6, "F1", "in step 2"


def await_file(path: Path, process: subprocess.Popen[str]) -> str:
    """The file's content once it has some."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"no {path.name} in time: {process.communicate()[1]}")


def latest_end(pids: list[int], seconds: float) -> float:
    """When the last of these processes was gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.005)
    left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not left, f"{left} still run after {seconds} s"
    return time.time()


@pytest.fixture
def run(make_model: Callable[..., Path], text: Path, tmp_path: Path) -> Iterator[Callable[[int], list[str]]]:
    """Train on three ranks of which one raises; returns the lines on standard error."""
    started: list[subprocess.Popen[str]] = []

    def train(rank: int) -> list[str]:
        environment, note = raising_environment(tmp_path, rank, CALL)
        options = f"--processes {RANKS} --global-batch-size 8 --micro-batch-size 2 --seq-length 32 --steps 50"
        files = ["--data", str(text), "--out", str(tmp_path / "run")]
        process = subprocess.Popen(
            [sys.executable, "-m", "evenflow", "train", str(make_model()), "--no-check", *files, *options.split()],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        started.append(process)
        raised = float(await_file(note, process))
        pids = [own.pid for own in load_ranks(tmp_path / "run" / "ranks.json")]
        assert len(pids) == RANKS
        assert latest_end(pids, 20) - raised < 1
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 3, errors
        return [*errors.splitlines(), f"process {pids[rank]}"]

    yield train
    for process in started:
        process.kill()
        process.wait()


# In CI the rank in the middle, which has a peer on either side.
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.full), 1, pytest.param(2, marks=pytest.mark.full)])
def test_a_raising_rank_stops_all_and_is_named_first(run: Callable[[int], list[str]], rank: int) -> None:
    *lines, who = run(rank)
    assert lines[-1] == (
        f"evenflow train: rank {rank} failed in {rank}{ACTION}: ValueError: the weights caught fire ({who}, {STEP})"
    )
    # Nobody else has said anything: neither a peer that lost its connection, nor a traceback.
    assert not [line for line in lines[:-1] if re.search("(?i)traceback|connection|peer|lost|error|warning", line)]
