"""A cluster file: nodes, their devices and links, in TOML, for clusters that a short form cannot say."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from evenflow.errors import InputError
from evenflow.files.device import load_device
from evenflow.files.document import Part, checked, read_text
from evenflow.files.kinds import CLUSTER, refuse_other, refuse_other_text
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
    """A device that the catalogue does not have, or figures of one that differ here.

    It begins as one of the catalogue (`like`), or as what `profile --device` has measured (`file`).
    """

    like: str | None = None
    file: str | None = None
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
        InputError: it cannot be read, is not TOML or of another kind, a key is wrong (which), or a device is not known.
    """
    text = read_text(path, "TOML")
    try:
        data: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        refuse_other_text(text, CLUSTER, str(path))
        raise InputError(f"{path}: is not TOML: {error}") from None
    refuse_other(data, CLUSTER, str(path))
    part = checked(ClusterPart, data, str(path))
    groups = []
    for number, nodes in enumerate(part.nodes):
        where = f"{path}: nodes.{number}"
        device = _device(part, nodes.device, where, path)
        if nodes.memory is not None:
            device = _with(device, memory_bytes=float(_bytes(nodes.memory, f"{where}.memory")))
        links = part.links
        if links.node_gbytes_per_s is not None:
            device = _with(device, node_bytes_per_s=links.node_gbytes_per_s * _GIGA)
        if links.network_gbytes_per_s is not None:
            device = _with(device, network_bytes_per_s=links.network_gbytes_per_s * _GIGA)
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
        try:
            return parse_cluster(text, processes, threads)
        except InputError:
            with suppress(OSError):  # a name that no file can have
                if Path(text).is_file():
                    refuse_other_text(read_text(Path(text), "TOML"), CLUSTER, text)
            raise
    found = load_cluster(Path(text).expanduser())
    return grouped_cluster(found.name, found.groups, processes)


def _device(part: ClusterPart, name: str, where: str, path: Path) -> Accelerator:
    own = part.devices.get(name)
    if own is None:
        return _catalogued(name, f"{where}.device")
    here = f"{path}: devices.{name}"
    if (own.like is None) == (own.file is None):
        both = "like and file are both there" if own.like is not None else "like is missing, and so is file"
        raise InputError(f"{here}: {both}; a device of the catalogue, or a device.json of profile --device, would do")
    device = _measured(own.file, here, path) if own.file is not None else _catalogued(str(own.like), f"{where}.device")
    given: dict[str, float] = {}
    if own.half_tflops is not None:
        given["half_flops"] = own.half_tflops * _TERA
    if own.memory_gbytes_per_s is not None:
        given["memory_bytes_per_s"] = own.memory_gbytes_per_s * _GIGA
    if own.memory is not None:
        given["memory_bytes"] = float(_bytes(own.memory, f"{where}.device"))
    source = device.source if own.file is not None and not given else "the cluster file"
    return replace(_with(device, **given), name=name, source=source)


def _catalogued(name: str, where: str) -> Accelerator:
    try:
        return named_accelerator(name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _measured(name: str, where: str, path: Path) -> Accelerator:
    """The device of a file in the cluster file's folder: one that is handed on with it, and never one elsewhere."""
    file = path.parent / name
    try:
        is_inside = file.resolve().is_relative_to(path.parent.resolve())
    except (OSError, ValueError, RuntimeError):  # a zero in the name, links that lead to each other
        is_inside = False
    if not is_inside:
        raise InputError(f"{where}.file: {name[:80]!r} leads out of {path.parent}; a copy in that folder would do")
    try:
        return load_device(file)
    except InputError as error:
        raise InputError(f"{where}.file: {error}") from None


def _with(device: Accelerator, **given: float) -> Accelerator:
    """The device with figures that the file gives: they are what it says, neither measured nor assumed."""
    kept = {
        origin: tuple(own for own in getattr(device, origin) if own not in given) for origin in ("assumed", "measured")
    }
    return replace(device, **given, **kept)  # type: ignore[arg-type]  # figures are floats, origins are names


def _bytes(text: str, where: str) -> int:
    try:
        return parse_bytes(text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
