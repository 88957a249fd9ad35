"""The groups of the axes: what a process is called, and how long it waits for the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenflow.launch import ForkServer
from evenflow.plan import Axes, Coordinates
from evenflow.runtime import Mesh


@pytest.mark.parametrize(
    ("axes", "at", "name"),
    [
        (Axes(pp=2), Coordinates(1), "rank 1"),
        (Axes(pp=2, dp=2), Coordinates(1, 1), "rank 3 (pp 1, dp 1)"),
        (Axes(pp=2, dp=2, tp=2), Coordinates(1, 0, 1), "rank 5 (pp 1, dp 0, tp 1)"),
    ],
)
def test_messages_call_a_process_by_the_number_that_all_files_have(axes: Axes, at: Coordinates, name: str) -> None:
    assert Mesh(axes, at).process_name == name


@pytest.mark.parametrize("axis", ["dp", "tp"])
def test_a_group_waits_as_long_as_it_was_told_to(server: ForkServer, tmp_path: Path, axis: str) -> None:
    """Groups that torch makes for a mesh wait for half an hour; here the other process only ever waits to be told."""
    payload = {"axis": axis, "rendezvous": str(tmp_path / "meeting"), "gave_up": str(tmp_path / "gave-up")}
    group = server.start("patience", "tests.runtime.ranks:waits_for_a_silent_peer", 2, payload)
    results = dict(item for item in group.messages() if item is not None)
    assert results[1]["heard"], "it gave up by itself, not when the silent one left"
