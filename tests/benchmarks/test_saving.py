"""The benchmark of saving reads each save's figures from the run's own files; it asserts no speed."""

from __future__ import annotations

import json
from unittest import mock

import pytest

from benchmarks.saving import main


def test_steps_and_saves_are_paired(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["saving", "--hidden-size", "64", "--blocks", "1", "--seq-length", "16", "--global-batch-size", "4"]
    with mock.patch("sys.argv", [*options, "--json"]):
        main()
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["rounds"] <= 15
    assert result["state_bytes"] > 12 * 2 * 4096 * 64  # weights and both moments of embedding and head alone
    for name in ("step", "next", "hashing"):
        assert 0 < result[name]["low"] <= result[name]["median"] <= result[name]["high"]
    assert result["hashing"]["high"] < 1
    with mock.patch("sys.argv", options), pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.saving.measure", lambda *_: result)
        main()
    assert "the step after it" in capsys.readouterr().out
