"""A worker that dies on one of two hosts: both torchruns start theirs again, and the run ends as without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.test_faults import wait_for_step
from tests.hosts.test_two_hosts import everyone, facts, finish, same_bytes, worker_of

# Both hosts have the same names and addresses in every test.
pytestmark = [pytest.mark.alone, pytest.mark.full, pytest.mark.slow]
STEPS = 300
OPTIONS = [
    *("--global-batch-size", 8, "--micro-batch-size", 2, "--seq-length", 32),
    *("--steps", STEPS, "--seed", 4, "--save-every", 5, "--no-check"),
]


@pytest.fixture
def run(make_model: Callable[..., Path], text: Path) -> list[object]:
    """The command but for where it trains."""
    return ["train", make_model(), "--data", text, *OPTIONS]


@pytest.fixture
def one_host(run: list[object], tmp_path: Path) -> Path:
    """The run that the others are held against: two ranks on this host."""
    own = [*map(str, run), "--out", str(tmp_path / "one"), "--processes", "2"]
    subprocess.run([sys.executable, "-m", "evenflow", *own], check=True, capture_output=True)
    return tmp_path / "one"


@pytest.fixture
def start(run: list[object], one_host: Path, tmp_path: Path, hosts: tuple[Any, ...]) -> Iterator[Callable[[int], Any]]:
    """Start the run under torchrun on one of the two hosts; the store is on the first."""
    started: list[subprocess.Popen[str]] = []
    meeting = [f"--rdzv-endpoint={hosts[0].address}:29513", "--rdzv-backend=c10d", "--rdzv-id=job", "--max-restarts=3"]
    program = ["-m", "evenflow", *run, "--plan", one_host / "plan.json", "--out", tmp_path / "two"]

    def on(number: int) -> Any:
        host = hosts[number]
        started.append(host.torchrun([*meeting, f"--local-addr={host.address}"], program))
        return started[-1]

    yield on
    for top in started:
        with suppress(ProcessLookupError):
            os.killpg(top.pid, signal.SIGKILL)
        top.wait()


def check_went_on(said: list[tuple[str, str]], one: Path, two: Path) -> None:
    """It was started again once, from a checkpoint, and came to the same."""
    told = "".join(part for own in said for part in own)
    assert told.count("restart by torchrun: ") == 1, told
    assert "goes on from its newest checkpoint" in " ".join(told.split())
    assert facts(two) == facts(one)
    for pattern in ("model/*.safetensors", f"checkpoints/step-{STEPS:08d}/*.safetensors"):
        assert same_bytes(one, two, pattern)


def test_a_worker_that_dies_on_another_host_is_started_again(
    one_host: Path, start: Callable[[int], Any], tmp_path: Path
) -> None:
    """Whether a host counts the restart depends on which it sees first: its own worker's end, or the other host."""
    both = [start(0), start(1)]
    wait_for_step(tmp_path / "two", both[0], step=12)
    other = next(top for top in both if worker_of(top).environ()["RANK"] == "1")
    before = [own for top in both for own in everyone([top])[1:]]
    worker_of(other).kill()
    said = finish(both)
    assert not psutil.wait_procs(before, timeout=10)[1]
    check_went_on(said, one_host, tmp_path / "two")
