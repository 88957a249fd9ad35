"""What the model is trained on: devices, the memory of each, and how they are linked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from evenflow.errors import InputError
from evenflow.spec.accelerators import Accelerator, named_accelerator
from evenflow.spec.gpus import Gpu, visible_gpus
from evenflow.spec.machine import Machine, this_machine
from evenflow.units import format_bytes

CPU = "cpu"
_LOCAL_PROCESSES = 8
_MOST_IN_A_NODE = 16  # devices that one host has; links of the catalogue that join more go from host to host
_SHORT_FORM = re.compile(r"(?:(\d{1,9})x)?(?:(\d{1,9})x)?([A-Za-z][\w.+-]*)")


@dataclass(frozen=True, slots=True)
class Device:
    """One processor that holds one rank.

    Attributes:
        name: its catalogue name, or `cpu`.
        memory_bytes: memory one rank may use.
        flops: peak floating-point operations a second in the training type.
        efficiency: the share of that peak that dense layers are assumed to reach where nothing was measured; 1 where a
            roofline says what each operator does.
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

    @property
    def is_gpu(self) -> bool:
        """Whether ranks compute with CUDA."""
        return self.name != CPU


@dataclass(frozen=True, slots=True)
class Cluster:
    """Devices, equal ones unless `groups` are of several kinds.

    Attributes:
        name: what the user called it.
        device: the device each rank has.
        devices: how many there are.
        threads: compute threads of each rank (CPU devices; 1 elsewhere).
        at_once: how many devices compute at full speed at once: fewer than `devices` where processes share cores or
            GPUs.
        is_local: whether it is this machine, so that costs can be measured here.
        groups: its nodes, kind by kind; none for this machine.
    """

    name: str
    device: Device
    devices: int
    threads: int
    at_once: int
    is_local: bool
    groups: tuple[NodeGroup, ...] = ()


GIB = 2**30


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Equal nodes of a cluster.

    Attributes:
        accelerator: every device of them, with the links that it has here.
        nodes: how many.
        node_devices: devices of each.
    """

    accelerator: Accelerator
    nodes: int
    node_devices: int

    @property
    def devices(self) -> int:
        """Devices of all of them."""
        return self.nodes * self.node_devices


def device_of(accelerator: Accelerator) -> Device:
    """A catalogue entry as ranks see it."""
    return Device(
        accelerator.name,
        accelerator.usable_bytes,
        accelerator.half_flops,
        1.0,  # a roofline says what each operator reaches
        accelerator.node_bytes_per_s,
        10e-6,
        accelerator.source,
    )


# What one process needs of a GPU before its first tensor: CUDA's context and the libraries' workspaces. Assumed.
_CONTEXT_BYTES = GIB
# Peak rates in fp32, without TF32, by what the driver's name of the GPU holds; others count as the slowest of them.
_FP32_FLOPS = {"H200": 67e12, "H100": 67e12, "A100": 19.5e12}


def local_cluster(processes: int | None = None, threads: int | None = None) -> Cluster:
    """This machine as a cluster: its GPUs, or equal slices of its cores where it has none.

    With more processes than GPUs, processes share them. Without a GPU, a slice is cores / min(cores, 8) threads
    whatever `processes` is, so that a run's arithmetic does not depend on how many processes share it; more
    processes than slices share cores.

    Args:
        processes: how many devices to use; by default all GPUs, or min(cores, 8).
        threads: compute threads of each process; by default one slice.

    Raises:
        InputError: too few processes or threads, or GPUs that differ.
    """
    machine, gpus = this_machine(), visible_gpus()
    slices = len(gpus) or min(machine.cores, _LOCAL_PROCESSES)
    count = processes if processes is not None else slices
    if count < 1:
        raise InputError(f"{count} processes is too few; 1 would be the least")
    if threads is not None and threads < 1:
        raise InputError(f"{threads} threads is too few; 1 would be the least")
    if gpus:
        return _gpu_cluster(gpus, machine, count, threads)
    own_threads = threads if threads is not None else machine.cores // slices
    device = Device(
        name=CPU,
        memory_bytes=machine.memory_bytes // count,
        flops=64e9 * own_threads,
        efficiency=0.5,
        link_bytes_per_s=2e9,
        link_latency_s=100e-6,
        source="assumed: 64 GFLOP/s a core in fp32 and loopback TCP; `evenflow profile` measures instead",
    )
    at_once = min(count, max(machine.cores // own_threads, 1))
    return Cluster("local", device, count, own_threads, at_once, is_local=True)


def _gpu_cluster(gpus: Sequence[Gpu], machine: Machine, count: int, threads: int | None) -> Cluster:
    """The GPUs of this machine, each for one process or, where there are more of these, for several."""
    names = sorted({gpu.name for gpu in gpus})
    if len(names) > 1:
        raise InputError(
            f"the GPUs of this machine differ ({', '.join(names)}); CUDA_VISIBLE_DEVICES can choose equal ones"
        )
    sharing = -(-count // len(gpus))
    device = Device(
        name=names[0],
        memory_bytes=max(min(gpu.memory_bytes for gpu in gpus) // sharing - _CONTEXT_BYTES, 0),
        flops=next((flops for name, flops in _FP32_FLOPS.items() if name in names[0]), min(_FP32_FLOPS.values())),
        efficiency=0.5,
        link_bytes_per_s=10e9,
        link_latency_s=20e-6,
        source="peak in fp32 as in NVIDIA's datasheets of 2021 and 2023, else assumed; `evenflow profile` measures",
    )
    own_threads = threads if threads is not None else max(machine.cores // count, 1)
    return Cluster("local", device, count, own_threads, min(count, len(gpus)), is_local=True)


def check_memory_limit(limit: int | None, most: float, usual: float, whose: str) -> None:
    """Refuse a limit of the user's that is more than there is.

    Args:
        limit: bytes that a rank's tensors may take; None where nobody limits them.
        most: bytes that there are.
        usual: what is taken without a limit.
        whose: memory that is, for the message.

    Raises:
        InputError: it is more.
    """
    if limit is not None and limit > most:
        raise InputError(
            f"--memory-limit {format_bytes(limit)} is more than the {format_bytes(most)} that {whose} has; "
            f"{format_bytes(usual)}, which is taken without a limit, would do"
        )


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
    accelerator = named_accelerator(name)
    counts = [int(number) for number in (first, second) if number]
    nodes = counts[0] if len(counts) == 2 else 1
    each = counts[-1] if counts else 1
    if nodes * each < 1:
        raise InputError(f"cluster {text!r} has no devices; 1 node of 1 device would be the least")
    if processes is not None and not 1 <= processes <= nodes * each:
        raise InputError(
            f"cluster {text!r} has {nodes * each} devices; 1 to {nodes * each} of them can be used, not {processes}"
        )
    joined = in_nodes(accelerator, each if len(counts) == 2 else min(each, accelerator.node_devices))
    return grouped_cluster(text, (NodeGroup(joined, nodes, each),), processes)


def in_nodes(accelerator: Accelerator, devices: int) -> Accelerator:
    """A device in nodes of so many: its fast link joins those, unless it goes beyond what is a node.

    The NVLink of a GB200 or GB300 NVL72 joins the 72 devices of a rack, whose trays of 4 are what people count as
    nodes: theirs keeps joining 72. A link's reach is what costs go by.
    """
    if accelerator.node_devices > _MOST_IN_A_NODE:
        devices = max(devices, accelerator.node_devices)
    return replace(accelerator, node_devices=devices)


def grouped_cluster(name: str, groups: tuple[NodeGroup, ...], processes: int | None = None) -> Cluster:
    """A cluster of nodes; `device` is that of the first group."""
    devices = processes or sum(group.devices for group in groups)
    device = device_of(groups[0].accelerator)
    return Cluster(name, device, devices, threads=1, at_once=devices, is_local=False, groups=groups)
