"""The overhead benchmark takes a step apart without losing or counting anything twice; it asserts no speed."""

from __future__ import annotations

import json
from unittest import mock

import pytest

from benchmarks.overhead import main


@pytest.mark.parametrize("schedule", ["1f1b", "zb-v"])
def test_the_parts_of_a_step_add_up(capsys: pytest.CaptureFixture[str], schedule: str) -> None:
    options = ["overhead", "--rounds", "15", "--microbatches", "4", "--microbatch-ms", "1", "--schedule", schedule]
    with mock.patch("sys.argv", [*options, "--json"]):
        main()
    result = json.loads(capsys.readouterr().out)
    parts = result["parts_s"]
    # Medians of parts need not add up exactly; each is there, and none is more than the whole.
    assert set(parts) == {"wall", "compute", "waiting", "overhead", "posting", "loop", "marks", "report"}
    assert all(0 < parts[name] <= parts["wall"] for name in parts)
    for name in ("overhead", "posting", "between_actions", "loop", "marks", "recorder", "recorder_step"):
        assert result[name]["low"] <= result[name]["median"] <= result[name]["high"]
    assert result["loop"]["median"] <= result["between_actions"]["median"] <= result["overhead"]["median"]
    with mock.patch("sys.argv", options[:3]), pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.overhead.measure", lambda *_: result)
        main()
    assert "between actions" in capsys.readouterr().out


def test_too_few_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch("sys.argv", ["overhead", "--rounds", "3"]), pytest.raises(SystemExit):
        main()
    assert "15 would be the least" in capsys.readouterr().err
