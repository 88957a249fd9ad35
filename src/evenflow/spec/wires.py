"""What joins devices: bytes a second in one direction of each kind of link, as standards and data sheets print them."""

from __future__ import annotations

from dataclasses import dataclass

_LINKS = "alpha-one-index.github.io/ai-infra-index/specs/networking-interconnects.html (both ways; halved)"
_PCIE = "crazy-logic.co.uk/projects/computing/pci (GT/s times 16 lanes, less the line code)"
_INFINIBAND = "infiniband.jp/2022/06/01 (four lanes, less the line code)"
_GIGABIT = 1e9 / 8


@dataclass(frozen=True, slots=True)
class Wire:
    """One kind of link.

    Attributes:
        name: as people call it.
        bytes_per_s: one direction, of one device (NVLink: all its links; a network: one port).
        source: who prints it.
    """

    name: str
    bytes_per_s: float
    source: str


WIRES: dict[str, Wire] = {
    wire.name: wire
    for wire in (
        Wire("NVLink 2", 150e9, _LINKS),
        Wire("NVLink 3", 300e9, _LINKS),
        Wire("NVLink 4", 450e9, _LINKS),
        Wire("NVLink 5", 900e9, _LINKS),
        Wire("NVLink 4 (H800)", 200e9, "aiwiki.ai/wiki/nvidia_h800, philisun.com: 400 GB/s both ways"),
        Wire("Infinity Fabric", 448e9, "emergentmind.com/topics/amd-mi300x-gpu: 7 links to an OAM platform's others"),
        Wire("PCIe 3 x16", 15.76e9, _PCIE),
        Wire("PCIe 4 x16", 31.52e9, _PCIE),
        Wire("PCIe 5 x16", 63.04e9, _PCIE),
        Wire("PCIe 6 x16", 128e9, _LINKS.replace(" (both ways; halved)", "")),
        Wire("InfiniBand EDR", 100 * _GIGABIT, _INFINIBAND),
        Wire("InfiniBand HDR", 200 * _GIGABIT, _INFINIBAND),
        Wire("InfiniBand NDR", 400 * _GIGABIT, _INFINIBAND),
        Wire("InfiniBand XDR", 800 * _GIGABIT, _LINKS),
        Wire("Omni-Path 100", 100 * _GIGABIT, "its name: 100 Gbit/s a port"),
        Wire("RoCE 100", 100 * _GIGABIT, "its name: Ethernet of 100 Gbit/s"),
        Wire("RoCE 200", 200 * _GIGABIT, "its name: Ethernet of 200 Gbit/s"),
        Wire("RoCE 400", 400 * _GIGABIT, "its name: Ethernet of 400 Gbit/s"),
        Wire("Ethernet 10", 10 * _GIGABIT, "its name: 10 Gbit/s"),
        Wire("Ethernet 25", 25 * _GIGABIT, "its name: 25 Gbit/s"),
        Wire("Ethernet 100", 100 * _GIGABIT, "its name: 100 Gbit/s"),
    )
}
