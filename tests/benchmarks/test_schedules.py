"""Why: a promise of auto is kept by a command that fails when it is broken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import schedules


@pytest.mark.parametrize(("slower", "code"), [(0, 0), (1, 1)])
def test_the_command_fails_where_auto_is_slower(slower, code, monkeypatch, capsys):
    gain = schedules.compare_auto(1)[0]
    assert gain.slower == 0
    monkeypatch.setattr(schedules, "compare_auto", lambda *_: [replace(gain, slower=slower)])
    monkeypatch.setattr(schedules, "time_auto", lambda: (1.0, 0.0))
    monkeypatch.setattr(schedules, "MICROBATCHES", (2,))
    monkeypatch.setattr(schedules, "_ROUNDS", 1)
    assert schedules.main(["--auto", "1"]) == code
    assert f"auto slower in {slower}" in capsys.readouterr().out
