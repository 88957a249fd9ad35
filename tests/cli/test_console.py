"""Progress without a terminal: few plain lines on standard error."""

from __future__ import annotations

import pytest

from evenflow.cli.console import TerminalProgress


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
