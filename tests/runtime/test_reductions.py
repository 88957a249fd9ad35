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


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(("message_bytes", "messages"), [(1 << 20, 1), (40, 3), (4, 4)])
def test_shares_come_whole_from_messages_of_any_size(
    server: ForkServer, tmp_path: Path, ranks: int, message_bytes: int, messages: int
) -> None:
    """Of 20 numbers in four parameters; a share ends inside one."""
    payload = {"message_bytes": message_bytes, "rendezvous": str(tmp_path / "meeting"), "ranks": ranks}
    group = server.start("messages", "tests.runtime.ranks:shares_in_messages", ranks, payload)
    results = dict(item for item in group.messages() if item is not None)
    both = 1000 * sum(range(ranks))
    found: dict[str, dict[int, float] | None] = {}
    for result in results.values():
        assert result["messages"] == messages
        assert result["left"] == []  # they moved into the messages
        for key, piece in result["pieces"].items():
            name, _, first = key.partition("@")
            if piece is None:
                found[name] = None
                continue
            own = found.setdefault(name, {})
            assert own is not None
            own |= dict(enumerate(piece, int(first)))
    assert found == {
        "long": {own: ranks * own + both for own in range(9)},
        "matrix": {own: ranks * (own + 100) + both for own in range(6)},
        "nobody": None,
        "last": {0: ranks * 300 + both},
    }
