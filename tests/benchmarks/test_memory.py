"""Why: what the executor holds must not depend on the number of microbatches, byte for byte, and PyTorch's does."""

from __future__ import annotations

import json

import pytest

from benchmarks import memory
from benchmarks.memory import FEW, main


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute alone
@pytest.mark.parametrize("many", [4 * FEW, pytest.param(memory.MANY, marks=pytest.mark.full)])
def test_tensors_stay_flat_and_keys_are_there(capsys, monkeypatch, many):
    monkeypatch.setattr(memory, "MANY", many)
    assert main(["--tiny", "--runs", "1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {"memory_growth", "memory_vs_torch", "memory_job_vs_torch"} <= set(figures)
    for name in ("peers_job", "memory_job"):
        ours = figures["memory"][name]["evenflow"]
        assert ours[str(FEW)]["tensors"] == ours[str(many)]["tensors"]
    ours, theirs = (figures["memory"]["memory_job"][name][str(many)]["tensors"] for name in ("evenflow", "torch"))
    assert all(own < other for own, other in zip(ours, theirs, strict=True))
    predicted = figures["memory"]["peers_job"]["predicted"][str(FEW)]
    measured = figures["memory"]["peers_job"]["evenflow"][str(FEW)]["tensors"]
    assert all(abs(said - seen) <= 0.05 * seen for said, seen in zip(predicted, measured, strict=True))
