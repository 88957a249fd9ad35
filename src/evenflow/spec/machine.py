"""The machine this process runs on: who measured a profile, so that it is never mixed with another's."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from evenflow.spec.gpus import visible_gpus


@dataclass(frozen=True, slots=True)
class Machine:
    """What a measurement depends on.

    Attributes:
        processor: the processor's model name, led by those of the GPUs that ranks would use.
        cores: cores this process may use.
        memory_bytes: memory this process may use (a cgroup's limit counts).
        system: operating system and its architecture.
    """

    processor: str
    cores: int
    memory_bytes: int
    system: str


def this_machine() -> Machine:
    """Describe the machine this process runs on."""
    return Machine(
        processor=", ".join([*(gpu.name for gpu in visible_gpus()), _processor_name()]),
        cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.machine()}",
    )


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(core_ids())


def core_ids() -> tuple[int, ...]:
    """The ids of the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def _memory_bytes() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [physical]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):
            continue  # no such cgroup version, or "max"
    return min(limits)
