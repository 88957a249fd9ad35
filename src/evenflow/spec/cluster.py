"""What the model is trained on: equal devices, the memory of each, and how they are linked."""

from __future__ import annotations

import re
from dataclasses import dataclass

from evenflow.errors import InputError
from evenflow.spec.machine import this_machine

_LOCAL_PROCESSES = 8
_SHORT_FORM = re.compile(r"(?:(\d+)x)?(?:(\d+)x)?([A-Za-z][\w.+-]*)")


@dataclass(frozen=True, slots=True)
class Device:
    """One processor that holds one rank.

    Attributes:
        name: its catalogue name, or `cpu`.
        memory_bytes: memory one rank may use.
        flops: peak floating-point operations a second in the training type.
        efficiency: the share of that peak that dense layers are assumed to reach where nothing was measured.
        link_bytes_per_s: bandwidth to the next device.
        link_latency_s: latency to the next device.
        source: where the figures come from.
    """

    name: str
    memory_bytes: int
    flops: float
    efficiency: float
    link_bytes_per_s: float
    link_latency_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal devices.

    Attributes:
        name: what the user called it.
        device: the device each rank has.
        devices: how many there are.
        threads: compute threads of each rank (CPU devices; 1 elsewhere).
        at_once: how many devices compute at full speed at once: fewer than `devices` where processes share cores.
        is_local: whether it is this machine, so that costs can be measured here.
    """

    name: str
    device: Device
    devices: int
    threads: int
    at_once: int
    is_local: bool


GIB = 2**30
CATALOGUE: dict[str, Device] = {
    device.name: device
    for device in (
        Device(
            "A100-80GB",
            80 * GIB,
            312e12,
            0.5,
            300e9,
            10e-6,
            "NVIDIA A100 datasheet, 2021: BF16 dense, NVLink 600 GB/s both ways; efficiency assumed",
        ),
        Device(
            "H100-80GB",
            80 * GIB,
            989e12,
            0.45,
            450e9,
            10e-6,
            "NVIDIA H100 SXM datasheet, 2023: BF16 dense, NVLink 900 GB/s both ways; efficiency assumed",
        ),
    )
}


def local_cluster(processes: int | None = None, threads: int | None = None) -> Cluster:
    """This machine as a cluster: one device is an equal slice of its cores.

    A slice is cores / min(cores, 8) threads whatever `processes` is, so that a run's arithmetic does not
    depend on how many processes share it; more processes than slices share cores.

    Args:
        processes: how many devices to use; by default min(cores, 8).
        threads: compute threads of each process; by default one slice.
    """
    machine = this_machine()
    slices = min(machine.cores, _LOCAL_PROCESSES)
    count = processes if processes is not None else slices
    if count < 1:
        raise InputError(f"{count} processes is too few; 1 would be the least")
    if threads is not None and threads < 1:
        raise InputError(f"{threads} threads is too few; 1 would be the least")
    own_threads = threads if threads is not None else machine.cores // slices
    device = Device(
        name="cpu",
        memory_bytes=machine.memory_bytes // count,
        flops=64e9 * own_threads,
        efficiency=0.5,
        link_bytes_per_s=2e9,
        link_latency_s=100e-6,
        source="assumed: 64 GFLOP/s a core in fp32 and loopback TCP; `evenflow profile` measures instead",
    )
    at_once = min(count, max(machine.cores // own_threads, 1))
    return Cluster("local", device, count, own_threads, at_once, is_local=True)


def parse_cluster(text: str, processes: int | None = None, threads: int | None = None) -> Cluster:
    """Read `local` or a short form: `8xH100-80GB`, `4x8xA100-80GB` (nodes x devices x device).

    Args:
        text: the cluster as the user wrote it.
        processes: how many of its devices to use; by default all.
        threads: for `local`, compute threads of each process.

    Raises:
        InputError: the form is not known, or the device is not in the catalogue.
    """
    if text == "local":
        return local_cluster(processes, threads)
    match = _SHORT_FORM.fullmatch(text)
    if match is None:
        raise InputError(f"cluster {text!r} is not understood; `local`, 8xA100-80GB or 4x8xH100-80GB would be")
    first, second, name = match.groups()
    if name not in CATALOGUE:
        raise InputError(f"device {name!r} is not in the catalogue; it has {', '.join(CATALOGUE)}")
    count = int(first or 1) * int(second or 1)
    if count < 1:
        raise InputError(f"cluster {text!r} has no devices")
    if processes is not None and not 1 <= processes <= count:
        raise InputError(f"cluster {text!r} has {count} devices; 1 to {count} of them can be used, not {processes}")
    devices = processes or count
    return Cluster(text, CATALOGUE[name], devices, threads=1, at_once=devices, is_local=False)
