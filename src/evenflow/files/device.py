"""device.json: a catalogue entry, of the machine that it was measured on or written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from evenflow.files.document import Document, read_document, refused_as, write_json
from evenflow.files.kinds import DEVICE, Kind
from evenflow.files.parts import Count, Rate
from evenflow.spec.accelerators import Accelerator


class DeviceDocument(Document):
    """The whole file."""

    kind: ClassVar[Kind] = DEVICE

    name: Annotated[str, Field(min_length=1)]
    half_flops: Rate
    eighth_flops: Rate
    single_flops: Rate
    memory_bytes: Rate
    memory_bytes_per_s: Rate
    node_bytes_per_s: Rate
    network_bytes_per_s: Rate
    node_devices: Count
    source: str
    watts: Annotated[float, Field(ge=0, le=1e6)]
    processors: Count
    node_wire: str
    network_wire: str
    assumed: list[str]
    measured: list[str]

    @classmethod
    def of(cls, device: Accelerator) -> DeviceDocument:
        """The file that says what `device` is."""
        facts = {name: getattr(device, name) for name in Accelerator.__slots__}
        return cls(**{**facts, "assumed": list(device.assumed), "measured": list(device.measured)})

    def value(self) -> Accelerator:
        """The device that this file says."""
        facts = {name: getattr(self, name) for name in Accelerator.__slots__}
        return Accelerator(**{**facts, "assumed": tuple(self.assumed), "measured": tuple(self.measured)})


def device_json(device: Accelerator) -> dict[str, Any]:
    """The device as `profile --device --json` prints it and device.json holds it."""
    with refused_as(f"the device {device.name}"):
        return DeviceDocument.of(device).model_dump()


def save_device(device: Accelerator, path: Path) -> None:
    """Write device.json, atomically."""
    write_json(path, device_json(device))


def load_device(path: Path) -> Accelerator:
    """Read device.json.

    Raises:
        InputError: the file is not a device's.
    """
    return read_document(path, DeviceDocument).value()
