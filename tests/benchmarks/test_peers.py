"""Why: step times of trainers that do not do the same work say nothing, and scripts rely on the keys."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from benchmarks.peers import TOLERANCE, loss_differences, main
from evenflow.errors import FaultError

OTHERS = ["one_process", "torch_equal_layers", "torch_same_split"]
DEEPSPEED = ["deepspeed_uniform", "deepspeed_parameters"]


def _json_of(capsys, *arguments):
    code = main(["--tiny", "--rounds", "2", "--json", *arguments])
    assert code == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.full  # in CI evenflow and PyTorch alone, below
@pytest.mark.slow
@pytest.mark.timeout(900)  # seconds alone; on busy cores every transfer waits for a time slice
def test_everybody_trains_the_same(capsys):
    result = _json_of(capsys, "--rounds", "4", "--steps", "3")  # clipping by another norm shows after some ten steps
    here = [*OTHERS, *(DEEPSPEED if find_spec("deepspeed") else [])]
    assert set(result["loss_difference"]) == {"evenflow", *here}
    assert all(difference <= TOLERANCE for difference in result["loss_difference"].values())
    assert result["losses"]["evenflow"] < 5.7  # ln 256 and a little: it has learned something
    for name in [*here, *(["deepspeed"] if find_spec("deepspeed") else [])]:
        ratio = result["speed"][name]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert result["over_bound"] > 0
    assert {"memory_growth", "memory_vs_torch"} <= set(result)


@pytest.mark.slow
def test_without_deepspeed_its_figure_is_null_and_says_why(capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.contestants.find_spec", lambda name: None)
    result = _json_of(capsys, "--only", "evenflow", "torch_same_split", *DEEPSPEED)
    assert result["speed"]["deepspeed"] is None
    assert set(result["left_out"]) == set(DEEPSPEED)
    assert all("not installed" in reason for reason in result["left_out"].values())


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["gpipe", pytest.param("zb-h1", marks=pytest.mark.full), "zb-v"])
def test_pytorch_runs_the_plans_own_order(capsys, schedule):
    result = _json_of(capsys, "--only", "evenflow", "torch_same_split", "--schedule", schedule)
    assert result["schedule"] == schedule
    assert result["loss_difference"]["torch_same_split"] <= TOLERANCE


def test_other_losses_are_other_work():
    assert loss_differences({"evenflow": [2.0, 1.0], "other": [2.0, 1.0 + TOLERANCE / 2]})["other"] > 0
    with pytest.raises(FaultError, match="other does other work than evenflow"):
        loss_differences({"evenflow": [2.0, 1.0], "other": [2.0, 1.0 + 2 * TOLERANCE]})
    with pytest.raises(FaultError, match="other work"):
        loss_differences({"evenflow": [2.0], "other": [float("nan")]})


@pytest.mark.parametrize("wrong", [["--processes", "1"], ["--rounds", "0"], ["--only", "nobody"]])
def test_wrong_requests_are_refused(wrong):
    with pytest.raises(SystemExit, match="2"):
        main(wrong)
