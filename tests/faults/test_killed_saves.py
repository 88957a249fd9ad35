"""SIGKILL at random moments of a save, of a rank or of the command: the run goes on from the newest whole checkpoint.

One run saves after every step. Again and again a save is waited for, and at a random moment of it a process is killed.
What is then whole on the disk is found without the package's own reader, and is what has to be gone on from. At its end
the run has to be, to the bit, one that nothing happened to; so each kill costs no more than a start.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

import evenflow
from evenflow.files import load_metrics
from evenflow.train import Job, RunResult
from tests.faults.commands import Command, commands, newest_whole
from tests.faults.conftest import same_weights
from tests.faults.injection import alive, pids_of

VICTIMS = ("command", "rank 0", "rank 1")
_KEPT = 2
_TIMED = 5
_PATIENCE_S = 60.0


def steps_of(run: Path, kind: str) -> list[int]:
    """The steps of a run's folders of checkpoints of a kind: `step-`, or `partial-` for those being written."""
    names = os.listdir(run / "checkpoints") if (run / "checkpoints").exists() else []  # noqa: PTH208 - often asked
    return sorted(int(name.removeprefix(kind)) for name in names if name.startswith(kind))


def wait_for_save(run: Path, first: int) -> int:
    """Wait until a checkpoint after step `first` or a later one is being written; returns its step."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        found = steps_of(run, "partial-")
        if found and found[-1] >= first:
            return found[-1]
        time.sleep(0.002)
    raise AssertionError(f"no save after step {first} began in {_PATIENCE_S} s")


def running(run: Path) -> list[int]:
    """The ranks' process ids, once all run: what those before them left half written is gone by then."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        found = pids_of(run)
        if alive(found) == found:
            return found
        time.sleep(0.002)
    raise AssertionError(f"not all ranks run within {_PATIENCE_S} s")


def save_s(run: Path, first: int) -> float:
    """How long a save takes from its first file until older ones are dropped: the median of some."""
    times = []
    for number in range(_TIMED):
        step = wait_for_save(run, first + 3 * number)
        began = time.monotonic()
        while True:
            whole = steps_of(run, "step-")
            if whole and whole[-1] >= step and len(whole) <= _KEPT and not steps_of(run, "dropped-"):
                break
            assert time.monotonic() < began + _PATIENCE_S, f"the save after step {step} does not end"
            time.sleep(0.002)
        times.append(time.monotonic() - began)
    return median(times)


def step_in(line: str) -> int:
    """The step that a run says it goes on after."""
    return int(line.partition("after step ")[2].split()[0])


def kill_saves(whole: tuple[Job, RunResult], folder: Path, times: int) -> str:
    """Kill so often; returns what was killed, and how many of the saves were complete by then."""
    chance = random.Random(7)
    victims = [VICTIMS[number % len(VICTIMS)] for number in range(times)]
    chance.shuffle(victims)
    job = replace(whole[0], out=folder / "run", steps=10**6, save_every=1, keep_last=_KEPT, restarts=10**6)
    done = 0
    with commands(folder) as started:
        command = started.start(job)
        lasts_s = save_s(job.out, 2)
        base, restarts = steps_of(job.out, "step-")[-1], 0
        for victim in victims:
            ranks = running(job.out)
            step = wait_for_save(job.out, base + 2 + chance.randrange(3))
            time.sleep(chance.uniform(0, lasts_s))
            written = min([step, *steps_of(job.out, "partial-")])  # the oldest that is not whole yet
            if victim == "command":
                newest = kill_command(command)
                command, restarts = started.start(replace(job, resume=True)), 0
                base = step_in(command.hears("weights: of "))
            else:
                os.kill(ranks[int(victim[-1])], signal.SIGKILL)
                restarts += 1
                base = step_in(command.hears("restart ", restarts))
                newest = int(command.said("disk: ")[-1].split()[1])
            assert base == newest, f"{victim} was killed in the save after step {step}"
            slow = sum("slow" in line for line in command.said("warning: "))  # saves that were left out for that
            assert base >= written - 1 - slow, (
                f"{victim} was killed in the save after step {written}: older ones are lost"
            )
            assert not [line for line in command.said("warning: ") if "slow" not in line]
            done += base >= step
        command.hears("weights: ")
        wait_for_save(job.out, base + 2)
        os.kill(command.pid, signal.SIGTERM)
        command.gone()
    check_end(job, folder / "quiet")
    return f"{dict(Counter(victims))}; a save takes {lasts_s * 1e3:.0f} ms; {done} of {times} were complete by then"


def kill_command(command: Command) -> int:
    """Kill a command, which all its ranks die with; returns the newest whole checkpoint's step."""
    ranks = pids_of(command.out)
    os.kill(command.pid, signal.SIGKILL)
    command.gone()
    until = time.monotonic() + 5
    while alive(ranks) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive(ranks)
    return newest_whole(command.out)


def check_end(job: Job, quiet: Path) -> None:
    """The run that was killed so often ends as one that takes the same steps and never was."""
    metrics = load_metrics(job.out / "metrics.jsonl")
    last = metrics[-1].step
    assert [own.step for own in metrics] == list(range(1, last + 1))
    result = evenflow.train(replace(job, out=quiet, stop_at=last, save_every=None))
    assert [(own.loss, own.tokens) for own in metrics] == [(own.loss, own.tokens) for own in result.metrics]
    assert same_weights(job.out, quiet, last)


def test_killed_at_some_moments_of_a_save(whole: tuple[Job, RunResult], tmp_path: Path) -> None:
    kill_saves(whole, tmp_path, 4)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_at_100_random_moments_of_a_save(
    whole: tuple[Job, RunResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = kill_saves(whole, tmp_path, 100)
    with capsys.disabled():
        print(f"\nkilled in a save: {said}")
