"""The bad day, with real processes and real signals: killed ranks, Ctrl-C, and too little memory."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoModelForCausalLM

from evenflow.files import load_ranks

EVENFLOW = [sys.executable, "-m", "evenflow.cli"]
Start = Callable[..., "subprocess.Popen[str]"]


def options_of(**options: object) -> list[str]:
    """Keyword arguments as command-line options."""
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def start(make_model: Callable[..., Path], text: Path, tmp_path: Path) -> Iterator[Start]:
    """Start `evenflow train` in a process group of its own; it must be gone at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(**popen: Any) -> subprocess.Popen[str]:
        options = options_of(
            data=text, out=tmp_path / "run", processes=2, steps=100_000, seq_length=32, micro_batch_size=2, restarts=0
        )
        process = subprocess.Popen(
            [*EVENFLOW, "train", str(make_model()), "--no-check", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **popen,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def wait_for_step(run: Path, process: subprocess.Popen[str], step: int = 3) -> list[int]:
    """Wait until some steps are done; returns the ranks' process ids."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        metrics = run / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") >= step:
            return [own.pid for own in load_ranks(run / "ranks.json")]
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"no step in time: {process.communicate()[1]}")


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The command's process and all below it."""
    top = psutil.Process(process.pid)
    return [top, *top.children(recursive=True)]


def gone(processes: list[psutil.Process], seconds: float = 20) -> bool:
    """Whether all of them end; how soon is asked where nothing else runs, in test_raising_rank.py and the soak."""
    return not psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.full), 1])
def test_a_killed_rank_ends_the_others_and_is_named(start: Start, tmp_path: Path, rank: int) -> None:
    process = start()
    pids = wait_for_step(tmp_path / "run", process)
    everyone = family(process)
    os.kill(pids[rank], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    last = errors.strip().splitlines()[-1]
    assert f"rank {rank} (process {pids[rank]}) was killed by SIGKILL while in step" in last
    assert "Traceback" not in errors
    assert gone(everyone)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.full)]
)
def test_a_signal_saves_and_stops(start: Start, tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start()
    wait_for_step(tmp_path / "run", process)
    everyone = family(process)
    os.killpg(process.pid, number)  # as a terminal's Ctrl-C does: to the whole group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert f"stopped by {number.name} after step" in errors
    assert gone(everyone)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert f"after step {json.loads(lines[-1])['step']} of 100000" in errors
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")


@pytest.mark.usefixtures("measured_at_length")  # so that the signal comes in the middle of it
def test_a_signal_before_the_first_step(start: Start, tmp_path: Path) -> None:
    process = start(env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cold")})
    for line in process.stderr or []:
        if line.startswith("profile:"):
            break
    everyone = family(process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "before the first step" in errors
    assert "Traceback" not in errors
    assert gone(everyone)
    assert not (tmp_path / "run").exists()


@pytest.mark.alone  # a rank that is stopped is given up after three seconds
def test_a_second_signal_ends_at_once(start: Start, tmp_path: Path) -> None:
    process = start()
    pids = wait_for_step(tmp_path / "run", process)
    everyone = family(process)
    os.kill(pids[0], signal.SIGSTOP)  # so that the step that the first signal waits for never ends
    os.kill(process.pid, signal.SIGINT)
    for line in process.stderr or []:
        if line.startswith("stopping after this step"):  # so the first one was heard
            break
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert gone(everyone)


def test_a_killed_command_leaves_no_rank_behind(start: Start, tmp_path: Path) -> None:
    process = start()
    wait_for_step(tmp_path / "run", process)
    everyone = family(process)
    process.kill()
    process.communicate(timeout=60)
    assert gone(everyone)


# 27.5 M parameters: 440 MB of weights, gradients and optimizer state in fp32, beside what a process holds anyway.
BIG = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "num_hidden_layers": 12,
    "vocab_size": 8192,
}
LIMIT = 680 * 2**20


@pytest.mark.parametrize(
    ("processes", "code"),
    [pytest.param(1, 3, marks=pytest.mark.full), (2, 0), pytest.param(4, 0, marks=pytest.mark.soak)],
)
def test_too_big_for_one_process_but_not_for_several(
    make_model: Callable[..., Path], text: Path, tmp_path: Path, processes: int, code: int
) -> None:
    """RLIMIT_DATA is the limit that works with torch: it counts what a process writes to, not what it maps.

    With a fork server as a user has it: the one of other tests is warm, and its ranks hold what it did.
    """
    options = options_of(
        data=text,
        out=tmp_path / "run",
        steps=3,
        processes=processes,
        global_batch_size=8,
        micro_batch_size=1,
        seq_length=32,
    )
    if processes > 1:
        options += ["--memory-limit", "270MiB"]  # of tensors: a profile that others disturb may cut unevenly
    done = subprocess.run(
        [*EVENFLOW, "train", str(make_model(**BIG)), "--no-check", *options],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
        env={name: value for name, value in os.environ.items() if name != "EVENFLOW_TESTS_MODELS"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    if code:
        last = done.stderr.strip().splitlines()[-1]
        assert "rank 0" in last
        assert "out of memory" in last
        assert "Traceback" not in done.stderr
    else:
        assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
