"""Why: a promise of auto is kept by a command that fails when it is broken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import schedules
from benchmarks.uneven import uneven_case


@pytest.mark.parametrize(("slower", "code"), [(0, 0), (1, 1)])
def test_the_command_fails_where_auto_is_slower(slower, code, monkeypatch, capsys):
    monkeypatch.setattr(schedules, "uneven_case", lambda seed: uneven_case(seed, most_ranks=2))
    gain, crowded = schedules.compare_auto(1)
    assert (gain.cases, gain.slower, gain.is_crowded) == (1, 0, False)
    assert (crowded.cases, crowded.slower, crowded.is_crowded) == (1, 0, True)
    monkeypatch.setattr(schedules, "compare_auto", lambda *_: [replace(gain, slower=slower)])
    monkeypatch.setattr(schedules, "time_auto", lambda: (1.0, 0.0))
    monkeypatch.setattr(schedules, "MICROBATCHES", (2,))
    monkeypatch.setattr(schedules, "_ROUNDS", 1)
    assert schedules.main(["--auto", "1"]) == code
    assert f"auto slower in {slower}" in capsys.readouterr().out
