"""Why: what the executor holds must not depend on the number of microbatches, byte for byte, and PyTorch's does."""

from __future__ import annotations

import json
from functools import cache

import pytest

from benchmarks import memory
from benchmarks.memory import FEW, MANY, main


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute alone
@pytest.mark.parametrize("of", ["tensors", pytest.param("both", marks=pytest.mark.full)])
def test_tensors_stay_flat_and_keys_are_there(capsys, monkeypatch, of):
    """CI starts each contestant once, for its tensors; the processes' own peaks, which take as long, are not asked."""
    if of == "tensors":
        both = memory._all
        monkeypatch.setattr(
            memory, "_all", lambda measure, *rest: both(cache(lambda *own: measure(*own[:2], True)), *rest)
        )
    assert main(["--tiny", "--runs", "1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {"memory_growth", "memory_vs_torch", "memory_job_vs_torch"} <= set(figures)
    for name in ("peers_job", "memory_job"):
        ours = figures["memory"][name]["evenflow"]
        assert ours[str(FEW)]["tensors"] == ours[str(MANY)]["tensors"]
    ours, theirs = (figures["memory"]["memory_job"][name][str(MANY)]["tensors"] for name in ("evenflow", "torch"))
    assert all(own < other for own, other in zip(ours, theirs, strict=True))
    predicted = figures["memory"]["peers_job"]["predicted"][str(FEW)]
    measured = figures["memory"]["peers_job"]["evenflow"][str(FEW)]["tensors"]
    assert all(abs(said - seen) <= 0.05 * seen for said, seen in zip(predicted, measured, strict=True))
