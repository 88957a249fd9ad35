"""What is asked before a run: each refusal has the figure, and what would do."""

from __future__ import annotations

import resource
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evenflow.errors import ImpossibleError
from evenflow.plan import Axes
from evenflow.spec.cluster import CPU
from evenflow.train import preflight
from evenflow.train.preflight import available_memory, check_descriptors, check_memory, check_room, descriptors
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


def test_copies_of_the_state_are_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(sample_plan(2, 2, 2), device=CPU)
    peaks = sum(rank.peak_bytes for rank in plan.ranks)
    monkeypatch.setattr(preflight, "available_memory", lambda: peaks + CHECKPOINT - 1)
    with pytest.raises(ImpossibleError, match=r"processes, .*B of it for the copies that --save-every takes, .*no --s"):
        check_memory(plan, 2, CHECKPOINT)
    check_memory(plan, 2)
    monkeypatch.setattr(preflight, "available_memory", lambda: CHECKPOINT // 2)
    check_memory(replace(plan, device="gpu"), 1, CHECKPOINT)  # one of two hosts has half of it
    with pytest.raises(ImpossibleError, match=r"available; no --save-every, or other programs ended"):
        check_memory(replace(plan, device="gpu"), 2, CHECKPOINT)
    replicas = replace(plan, axes=Axes(pp=1, dp=4), ranks=plan.ranks[:1], device="gpu")
    check_memory(replicas, 4, CHECKPOINT // 2)  # whatever their number, one of them copies
    with pytest.raises(ImpossibleError, match=r"needs .* in 1 processes"):
        check_memory(replicas, 1, CHECKPOINT)


def test_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = sample_plan(2, 2, 2)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 20))
    with pytest.raises(ImpossibleError, match=r"up to \d+ files and connections, and 20 is the limit .* `ulimit -n"):
        check_descriptors(plan)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    check_descriptors(plan)


def test_descriptors_are_counted_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 processes: a process has few peers in most of its groups, and the limit is raised where it may be."""
    plan: Any = SimpleNamespace(axes=Axes(pp=4, tp=8, dp=16), tied=((0, 3),), stage_rank=(0, 1, 2, 3))
    assert descriptors(plan) == 64 + 2 * (2 * 511 + 3 + 7 + 15 + (2 * 16 - 1))
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    check_descriptors(plan)
    assert raised == [(descriptors(plan), 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 2048))
    with pytest.raises(ImpossibleError, match=r"and 1024 is the limit \(hard limit 2048\)"):
        check_descriptors(plan)


def test_what_a_resumed_run_has_saved_makes_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free(monkeypatch, 2 * CHECKPOINT)
    for step in (1, 2):
        shard = tmp_path / "checkpoints" / f"step-{step:08d}" / "rank-0.safetensors"
        shard.parent.mkdir(parents=True)
        with shard.open("wb") as file:
            file.truncate(CHECKPOINT)
    assert check_room(tmp_path, MODEL, 2) is None


def test_a_groups_cached_files_are_not_held_against_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("990000\n")
    (tmp_path / "memory.stat").write_text(
        "anon 90000\ninactive_file 300000\nactive_file 500000\nslab_reclaimable 100000\n"
    )
    monkeypatch.setattr(preflight, "_CGROUP", tmp_path)
    assert available_memory() == 910_000


def test_this_machine_says_what_it_has() -> None:
    found = available_memory()
    assert found is None or 2**20 < found < 2**50
