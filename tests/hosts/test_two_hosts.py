"""A run across two hosts is the run on one: plan, losses and weights bitwise, and a fault there is named here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from evenflow.cli import main
from evenflow.files import load_ranks
from evenflow.launch.wire import DEAD_AFTER_S
from tests.faults.raising import raising_environment
from tests.faults.test_faults import wait_for_step
from tests.faults.test_raising_rank import await_file, latest_end
from tests.hosts.conftest import Start

# Both hosts have the same names and addresses in every test: of those that CI runs only this file makes them, by one
# worker of pytest. `test_worker_restarts.py` does too, and runs alone.
OPTIONS = [
    *("--global-batch-size", 8, "--micro-batch-size", 2, "--seq-length", 32),
    *("--steps", 4, "--seed", 4, "--no-check"),
]


@pytest.fixture
def one_host(make_model: Callable[..., Path], text: Path, tmp_path: Path) -> Path:
    """The run that the others are held against: two ranks on this host."""
    arguments = ["train", make_model(), "--data", text, "--out", tmp_path / "one", *OPTIONS, "--processes", 2]
    assert main([*map(str, arguments)]) == 0
    return tmp_path / "one"


def finish(both: Sequence[Any], code: int = 0) -> list[tuple[str, str]]:
    """Wait for both hosts; what each printed."""
    said = [process.communicate(timeout=240) for process in both]
    # torchrun leaves with 1 whatever its workers left with.
    assert [process.returncode for process in both] == ([0, 0] if code == 0 else [1, 1]), said
    if code:
        assert f"exitcode  : {code} " in said[0][1], said[0][1]
    return said


def facts(run: Path) -> list[dict[str, Any]]:
    """What a run computed, step by step, without how long it took."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("step", "loss", "grad_norm", "lr", "tokens")} for line in lines]


def same_bytes(one: Path, other: Path, pattern: str) -> bool:
    """Whether two runs wrote the same files with the same content."""
    names = sorted(path.relative_to(one) for path in one.glob(pattern))
    assert names, f"{one} has no {pattern}"
    assert names == sorted(path.relative_to(other) for path in other.glob(pattern))
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def manifests(out: Path) -> list[dict[str, Any]]:
    """What checkpoints say, but of files that hold seconds, which no two runs have alike."""
    found = [json.loads(path.read_text()) for path in sorted(out.glob("checkpoints/*/manifest.json"))]
    assert found, f"{out} has no checkpoint"
    for facts in found:
        del facts["hash"], facts["beside"]["metrics.jsonl"]
    return found


@pytest.mark.slow
def test_two_hosts_train_bitwise_as_one(
    one_host: Path, make_model: Callable[..., Path], text: Path, tmp_path: Path, torchrun: Start
) -> None:
    two = tmp_path / "two"
    plan = one_host / "plan.json"
    said = finish(torchrun(["train", make_model(), "--data", text, "--out", two, *OPTIONS, "--plan", plan]))
    assert facts(two) == facts(one_host)
    assert len(facts(two)) == 4
    assert (two / "plan.json").read_bytes() == plan.read_bytes()
    for pattern in ("model/*.safetensors", "model/*.json", "checkpoints/*/*.safetensors", "tokens/tokens.bin"):
        assert same_bytes(one_host, two, pattern)
    assert manifests(one_host) == manifests(two)
    assert [rank.host for rank in load_ranks(two / "ranks.json")] == ["host-a", "host-b"]
    assert "step 4/4" in said[0][1]
    assert "step" not in "".join(said[1])  # one host tells the story
    warning = " ".join("".join(said[0]).split())
    assert "warning: the ranks talk over " in warning
    assert "(10.77.0.1): PyTorch's traffic between hosts is neither encrypted nor authenticated" in warning
    AutoModelForCausalLM.from_pretrained(two / "model")


@pytest.mark.soak  # more than a minute
@pytest.mark.slow
def test_two_ranks_on_each_host_go_on_with_it_bitwise(
    one_host: Path, make_model: Callable[..., Path], text: Path, tmp_path: Path, hosts: tuple[Any, ...]
) -> None:
    """Measured and planned across both hosts, met by torchrun's c10d, started by the console script."""
    first, rest = [*OPTIONS, "--stop-at", 2, "--processes", 1], [*OPTIONS, "--resume"]
    run = ["train", make_model(), "--data", text, "--out", tmp_path / "two"]
    stopped = subprocess.run([sys.executable, "-m", "evenflow", *map(str, [*run, *first])], check=False)
    assert stopped.returncode == 0
    script = str(Path(sys.executable).parent / "evenflow")
    meeting = [f"--rdzv-endpoint={hosts[0].address}:29512", "--rdzv-backend=c10d", "--rdzv-id=job"]
    meeting += ["--nproc-per-node=2", "--no-python"]
    both = [host.torchrun([*meeting, f"--local-addr={host.address}"], [script, *run, *rest]) for host in hosts]
    said = finish(both)
    assert facts(tmp_path / "two") == facts(one_host)
    assert "profile: timing layers with 4 busy processes" in "".join(said[0] + said[1])
    found = load_ranks(tmp_path / "two" / "ranks.json")
    assert [rank.rank for rank in found] == [0, 1, 2, 3]
    assert sorted({rank.host for rank in found}) == ["host-a", "host-b"]
    trained, whole = (AutoModelForCausalLM.from_pretrained(run / "model") for run in (tmp_path / "two", one_host))
    theirs = whole.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in trained.state_dict().items())


@pytest.fixture
def endless(make_model: Callable[..., Path], text: Path, tmp_path: Path) -> list[object]:
    """A run that goes on until something ends it."""
    options = [*OPTIONS[:6], "--steps", 1_000_000, "--no-check"]
    return ["train", make_model(), "--data", text, "--out", tmp_path / "two", *options]


def everyone(both: Sequence[Any]) -> list[psutil.Process]:
    """All processes of both torchruns."""
    return [own for top in both for own in (psutil.Process(top.pid), *psutil.Process(top.pid).children(recursive=True))]


def worker_of(top: Any) -> psutil.Process:
    """The worker that a torchrun has started."""
    return next(own for own in psutil.Process(top.pid).children() if "evenflow" in own.cmdline())


@pytest.mark.full
@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused_before_anything_is_done(
    make_model: Callable[..., Path], text: Path, tmp_path: Path, torchrun: Start
) -> None:
    (tmp_path / "runs").mkdir()
    arguments = ["train", make_model(), "--data", text, "--out", tmp_path / "runs" / "two", *OPTIONS]
    said = finish(torchrun(arguments, hidden=tmp_path / "runs"), 2)
    assert f"evenflow train: --out {tmp_path / 'runs' / 'two'} is not shared: host-b (10.77.0.2) does not" in said[0][1]
    assert "evenflow train" not in said[1][1]
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.full
@pytest.mark.alone  # all have to be gone within a second
@pytest.mark.slow
def test_a_raising_rank_on_the_other_host_stops_all_and_is_named(
    endless: list[object], tmp_path: Path, torchrun: Start
) -> None:
    environment, note = raising_environment(tmp_path, rank=1, call=6)
    both = torchrun(endless, **environment)
    raised = float(await_file(note, both[0]))
    pids = [own.pid for own in load_ranks(tmp_path / "two" / "ranks.json")]
    assert latest_end(pids, 20) - raised < 1
    said = finish(both, 3)
    ours = [line for line in said[0][1].splitlines() if line.startswith("evenflow train")]
    assert ours == [
        "evenflow train: rank 1 failed in 1F1: ValueError: the weights caught fire "
        f"(process {pids[1]} on host-b (10.77.0.2), in step 2)"
    ]
    assert "evenflow train" not in said[1][1]


@pytest.mark.full  # in CI a rank there is to blame, in tests/launch
@pytest.mark.slow
def test_a_worker_that_dies_is_missed_and_its_host_named(
    endless: list[object], tmp_path: Path, torchrun: Start
) -> None:
    both = torchrun(endless)
    wait_for_step(tmp_path / "two", both[0])
    family = everyone(both)
    worker_of(both[1]).kill()
    said = both[0].communicate(timeout=60)[1]
    both[1].communicate(timeout=60)
    pids = [own.pid for own in load_ranks(tmp_path / "two" / "ranks.json")]
    assert f"evenflow train: rank 1 (process {pids[1]} on host-b (10.77.0.2)) is lost: " in said
    assert not psutil.wait_procs(family, timeout=10)[1]


@pytest.mark.soak  # more than a minute
@pytest.mark.slow
def test_a_cut_cable_is_noticed_at_both_ends(
    endless: list[object], tmp_path: Path, torchrun: Start, hosts: tuple[Any, ...]
) -> None:
    both = torchrun(endless)
    wait_for_step(tmp_path / "two", both[0])
    family = everyone(both)
    pids = [own.pid for own in load_ranks(tmp_path / "two" / "ranks.json")]
    hosts[1].cut()
    latest_end(pids, DEAD_AFTER_S + 30)
    said = [top.communicate(timeout=120)[1] for top in both]
    assert f"rank 1 (process {pids[1]} on host-b (10.77.0.2)) is lost: " in said[0]
    assert "rank 1 on host-b lost rank 0, the process that leads the run" in said[1]
    assert not psutil.wait_procs(family, timeout=10)[1]


@pytest.mark.full  # in CI a batch job of torchrun's is told, in tests/launch
@pytest.mark.slow
def test_a_signal_on_the_other_host_saves_and_stops_the_run(
    endless: list[object], tmp_path: Path, torchrun: Start
) -> None:
    both = torchrun(endless)
    wait_for_step(tmp_path / "two", both[0])
    family = everyone(both)
    both[1].terminate()
    said = [top.communicate(timeout=60)[1] for top in both]
    assert "evenflow train: stopped by SIGTERM after step" in said[0]
    assert not psutil.wait_procs(family, timeout=10)[1]
    AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "model")
