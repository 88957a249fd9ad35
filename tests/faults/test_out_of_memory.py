"""Memory that runs out in a step: the allocator says so, or the kernel kills the rank; both figures are named."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import evenflow
from evenflow.launch.oom import kills_for_memory
from evenflow.train import Job, RunResult
from tests.faults.conftest import Hears, same_weights
from tests.faults.injection import Faults

GROUPS = Path("/sys/fs/cgroup")
LIMIT = 1 << 29


def test_out_of_memory_names_rank_stage_action_and_both_figures(
    whole: tuple[Job, RunResult], faults: Faults, tmp_path: Path
) -> None:
    """A petabyte is asked for, of the real allocator."""
    job, _ = whole
    faults.plan(1, "forward", 22, "memory")
    says = (
        r"^rank 1 \(process \d+\) failed while in step 6: out of memory, at 1F1, with stage 1 \(layers \d+-\d+\): .*; "
        r"it held [\d.]+ \w+, the plan expects [\d.]+ \w+\. More processes"
    )
    hears = Hears()
    with pytest.raises(evenflow.FaultError, match=says):
        evenflow.train(replace(job, out=tmp_path / "run"), hears)
    assert not hears.starting("restart")


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A group of processes that the kernel lets have half a GiB and no swap beside, which only root can make."""
    is_first = (GROUPS / "memory").is_dir()  # version 1 has a folder for each thing that it limits
    group = GROUPS / ("memory" if is_first else ".") / f"evenflow-{os.getpid()}"
    # In version 1 the second is of memory and swap together.
    first = {"memory.limit_in_bytes": LIMIT, "memory.memsw.limit_in_bytes": LIMIT}
    limits = first if is_first else {"memory.max": LIMIT, "memory.swap.max": 0}
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"a limit on memory takes root: {error}")
    try:
        there = [name for name in limits if (group / name).exists()]  # a kernel that counts no swap has none for that
        if not there:
            pytest.skip("no limit on memory is to be had here")
        for name in there:
            (group / name).write_text(str(limits[name]))
        yield group
    finally:
        group.rmdir()


@pytest.mark.alone  # the kernel counts such kills of the whole machine
def test_a_rank_that_the_kernel_kills_for_memory_is_named_with_both_figures(
    whole: tuple[Job, RunResult], faults: Faults, little_memory: Path, tmp_path: Path
) -> None:
    """A gigabyte is taken where half of one may be; as others may have taken it, the run starts again."""
    job, out, before = whole[0], tmp_path / "run", kills_for_memory()
    faults.plan(1, "forward", 22, str(little_memory))
    hears = Hears()
    evenflow.train(replace(job, out=out), hears)
    assert kills_for_memory() == before + 1
    (said,) = hears.starting("fault: ")
    assert re.search(
        r"rank 1 \(process \d+\) was killed by SIGKILL, by the kernel, as memory ran out, while in step 6, at 1F1; the "
        r"other ranks were ended\. Rank 1, with stage 1 \(layers \d+-\d+\): it held [\d.]+ MiB at most up to step 5, "
        r"beside [\d.]+ \w+ of copied state, the plan expects [\d.]+ \w+\. More processes",
        said,
    ), said
    assert same_weights(out, job.out)


def test_another_kill_is_not_taken_for_one(whole: tuple[Job, RunResult], faults: Faults, tmp_path: Path) -> None:
    faults.plan(1, "forward", 22, signal.SIGKILL)
    hears = Hears()
    evenflow.train(replace(whole[0], out=tmp_path / "run"), hears)
    (said,) = hears.starting("fault: ")
    assert "was killed by SIGKILL while in step 6" in said
    assert "memory" not in said
