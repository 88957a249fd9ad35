"""A cluster file: nodes, their devices and links, in TOML, for clusters that a short form cannot say."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from evenflow.errors import InputError
from evenflow.files.document import Part, checked, read_text
from evenflow.files.parts import Count
from evenflow.spec import Cluster
from evenflow.spec.accelerators import Accelerator, named_accelerator
from evenflow.spec.cluster import NodeGroup, grouped_cluster, in_nodes, parse_cluster
from evenflow.units import parse_bytes

_GIGA, _TERA = 1e9, 1e12
Positive = Annotated[float, Field(ge=1e-6, le=1e9)]  # a kilobyte a second is slower than any link


class NodesPart(Part):
    """Nodes that are alike."""

    count: Count = 1
    devices: Count
    device: str
    memory: str | None = None


class LinksPart(Part):
    """Rates of links, one direction of one device, where they are not those of the catalogue."""

    node_gbytes_per_s: Positive | None = None
    network_gbytes_per_s: Positive | None = None


class DevicePart(Part):
    """A device that the catalogue does not have, or figures of one that differ here."""

    like: str
    half_tflops: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    memory: str | None = None
    memory_gbytes_per_s: Positive | None = None


class ClusterPart(Part):
    """The whole file."""

    name: str | None = None
    nodes: Annotated[list[NodesPart], Field(min_length=1)]
    links: LinksPart = LinksPart()
    devices: dict[str, DevicePart] = Field(default_factory=dict)


def load_cluster(path: Path) -> Cluster:
    """Read a cluster file.

    Raises:
        InputError: it cannot be read, is not TOML, a key is wrong (which), or a device is not known.
    """
    try:
        data: Any = tomllib.loads(read_text(path, "TOML"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: is not TOML: {error}") from None
    part = checked(ClusterPart, data, str(path))
    groups = []
    for number, nodes in enumerate(part.nodes):
        where = f"{path}: nodes.{number}"
        device = _device(part, nodes.device, where)
        if nodes.memory is not None:
            device = replace(device, memory_bytes=float(_bytes(nodes.memory, f"{where}.memory")))
        links = part.links
        if links.node_gbytes_per_s is not None:
            device = replace(device, node_bytes_per_s=links.node_gbytes_per_s * _GIGA)
        if links.network_gbytes_per_s is not None:
            device = replace(device, network_bytes_per_s=links.network_gbytes_per_s * _GIGA)
        groups.append(NodeGroup(in_nodes(device, nodes.devices), nodes.count, nodes.devices))
    return grouped_cluster(part.name or path.name, tuple(groups))


def read_cluster(text: str, processes: int | None = None, threads: int | None = None) -> Cluster:
    """`local`, a short form, or the path of a cluster file, which ends with .toml.

    Args:
        text: the cluster as the user wrote it.
        processes: how many of its devices to use; by default all.
        threads: for `local`, compute threads of each process.

    Raises:
        InputError: as of `parse_cluster` and `load_cluster`.
    """
    if not text.endswith(".toml"):
        return parse_cluster(text, processes, threads)
    found = load_cluster(Path(text).expanduser())
    return grouped_cluster(found.name, found.groups, processes)


def _device(part: ClusterPart, name: str, where: str) -> Accelerator:
    own = part.devices.get(name)
    try:
        device = named_accelerator(own.like if own else name)
    except InputError as error:
        raise InputError(f"{where}.device: {error}") from None
    if own is None:
        return device
    flops = device.half_flops if own.half_tflops is None else own.half_tflops * _TERA
    rate = device.memory_bytes_per_s if own.memory_gbytes_per_s is None else own.memory_gbytes_per_s * _GIGA
    memory = device.memory_bytes if own.memory is None else float(_bytes(own.memory, f"{where}.device"))
    return replace(
        device, name=name, half_flops=flops, memory_bytes_per_s=rate, memory_bytes=memory, source="the cluster file"
    )


def _bytes(text: str, where: str) -> int:
    try:
        return parse_bytes(text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
