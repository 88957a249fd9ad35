"""A run across two hosts is the run on one: plan, losses and weights bitwise, and a fault there is named here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from evenflow.files import load_ranks
from tests.hosts.conftest import Start

OPTIONS = [
    *("--global-batch-size", 8, "--micro-batch-size", 2, "--seq-length", 32),
    *("--steps", 4, "--seed", 4, "--no-check"),
]


@pytest.fixture
def one_host(make_model: Callable[..., Path], text: Path, tmp_path: Path) -> Path:
    """The run that the others are held against: two ranks on this host."""
    arguments = ["train", make_model(), "--data", text, "--out", tmp_path / "one", *OPTIONS, "--processes", 2]
    done = subprocess.run([sys.executable, "-m", "evenflow", *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
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
    for pattern in ("model/*.safetensors", "model/*.json", "checkpoints/*/*", "tokens/tokens.bin"):
        assert same_bytes(one_host, two, pattern)
    assert [rank.host for rank in load_ranks(two / "ranks.json")] == ["host-a", "host-b"]
    assert "step 4/4" in said[0][1]
    assert "step" not in "".join(said[1])  # one host tells the story
    AutoModelForCausalLM.from_pretrained(two / "model")
