"""Progress: a bar for each kind of work, or few plain lines on standard error where there is no terminal."""

from __future__ import annotations

import pytest

from evenflow.cli.console import TerminalProgress
from evenflow.files import StepMetrics


def test_tokenising_is_told_by_quarters(capfd: pytest.CaptureFixture[str]) -> None:
    progress = TerminalProgress()
    for done in range(0, 1001, 10):
        progress.tokenised(done, 1000, done * 2)
    progress.closed()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "tokenising: 25%, 500 tokens",
        "tokenising: 50%, 1,000 tokens",
        "tokenising: 75%, 1,500 tokens",
    ]


def test_training_has_a_bar_of_its_own_where_tokenising_passed_files_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = TerminalProgress()
    progress.tokenised(70, 100, 700)  # the other 30 bytes are no text
    tokenising = progress._bar
    progress.stepped(StepMetrics(3, 1.0, 1.0, 1e-3, 8, 8.0, 1.0, 0.0, 1.0, 0.1, (8,)), 9)
    training = progress._bar
    progress.closed()
    assert tokenising is not None
    assert training is not None
    assert training is not tokenising
    assert (training.tasks[0].completed, training.tasks[0].total) == (3, 9)
