"""Gradients are added in messages of some parameters each, with the sums that one message of all would give."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenflow.launch import ForkServer


@pytest.mark.parametrize(("message_bytes", "messages"), [(1 << 20, 1), (40, 3), (4, 5)])
def test_messages_add_up_whatever_their_size(
    server: ForkServer, tmp_path: Path, message_bytes: int, messages: int
) -> None:
    payload = {"message_bytes": message_bytes, "rendezvous": str(tmp_path / "meeting")}
    group = server.start("messages", "tests.runtime.ranks:adds_in_messages", 2, payload)
    results = dict(item for item in group.messages() if item is not None)
    for result in results.values():
        assert result["messages"] == messages
        assert result["left"] == []  # they moved into the messages
        assert result["sums"] == {
            "long": [2.0 * own + 100 for own in range(9)],
            "matrix": [2.0 * own + 120 for own in range(6)],
            "nobody": None,
            "mine": [30.0, 31.0],
            "last": [180.0],
        }
