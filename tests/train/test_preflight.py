"""What is asked before a run: each refusal has the figure, and what would do."""

from __future__ import annotations

import resource
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from evenflow.errors import ImpossibleError
from evenflow.spec.cluster import CPU
from evenflow.train import preflight
from evenflow.train.preflight import available_memory, check_descriptors, check_memory, check_room
from tests.files.samples import sample_model, sample_plan

Usage = namedtuple("Usage", "total used free")
MODEL = sample_model(2)
CHECKPOINT = 12 * MODEL.parameters


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage(10**12, 0, size))


def test_a_disk_without_room_for_a_checkpoint_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free(monkeypatch, CHECKPOINT)
    with pytest.raises(ImpossibleError, match=r"has .*B free; a checkpoint takes .*B and the model .*B more, or"):
        check_room(tmp_path, MODEL, 2)
    free(monkeypatch, 2 * CHECKPOINT)
    assert "A smaller --keep-last, or " in (check_room(tmp_path, MODEL, 2) or "")
    free(monkeypatch, 4 * CHECKPOINT)
    assert check_room(tmp_path, MODEL, 2) is None


def test_memory_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(sample_plan(2, 2, 2), device=CPU)
    peaks = [rank.peak_bytes for rank in plan.ranks]
    monkeypatch.setattr(preflight, "available_memory", lambda: sum(peaks) - 1)
    with pytest.raises(ImpossibleError, match=r"needs .*B in 2 processes, and this host has .*B available; --re"):
        check_memory(plan, 2)
    check_memory(plan, 1)  # the other one is on another host
    monkeypatch.setattr(preflight, "available_memory", lambda: sum(peaks))
    check_memory(plan, 2)


def test_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = sample_plan(2, 2, 2)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 20))
    with pytest.raises(ImpossibleError, match=r"up to \d+ files and connections, and 20 is the limit .* `ulimit -n"):
        check_descriptors(plan)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    check_descriptors(plan)


def test_this_machine_says_what_it_has() -> None:
    found = available_memory()
    assert found is None or 2**20 < found < 2**50
