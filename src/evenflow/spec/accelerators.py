"""Accelerators by their makers' data sheets: dense peak rates, memory, and links inside a node and between nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from evenflow.errors import InputError

_TERA = 1e12


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device of a catalogue.

    Attributes:
        name: short name.
        half_flops: dense FLOP/s in fp16 or bf16.
        eighth_flops: dense FLOP/s in fp8; those of `half_flops` where it has none.
        single_flops: FLOP/s in fp32, without tensor cores.
        memory_bytes: all its memory.
        memory_bytes_per_s: peak rate of its memory.
        node_bytes_per_s: one direction of its link to the node's others.
        network_bytes_per_s: one direction of its share of the network between nodes (assumed: what such nodes have).
        node_devices: devices that `node_bytes_per_s` joins.
        source: the data sheet.
    """

    name: str
    half_flops: float
    eighth_flops: float
    single_flops: float
    memory_bytes: float
    memory_bytes_per_s: float
    node_bytes_per_s: float
    network_bytes_per_s: float
    node_devices: int
    source: str


def _of(
    name: str, half: float, eighth: float, single: float, memory: float, rate: float, node: float, network: float,
    devices: int, source: str,
) -> Accelerator:  # fmt: skip
    """TFLOP/s, GB and GB/s, as data sheets print them."""
    return Accelerator(
        name, half * _TERA, eighth * _TERA, single * _TERA, memory * 1e9, rate * 1e9, node * 1e9, network * 1e9,
        devices, source,
    )  # fmt: skip


ACCELERATORS: dict[str, Accelerator] = {
    device.name: device
    for device in (
        _of("V100", 125, 125, 15.7, 32, 900, 150, 12.5, 8, "NVIDIA V100 data sheet, SXM2"),
        _of("A100-40GB", 312, 312, 19.5, 40, 1555, 300, 25, 8, "NVIDIA A100 data sheet, SXM"),
        _of("A100-80GB", 312, 312, 19.5, 80, 2039, 300, 25, 8, "NVIDIA A100 data sheet, SXM"),
        _of("H100-80GB", 989.4, 1978.9, 66.9, 80, 3350, 450, 50, 8, "NVIDIA H100 data sheet, SXM"),
        _of("H100-96GB", 989.4, 1978.9, 66.9, 96, 2400, 450, 50, 8, "NVIDIA H100 data sheet, SXM, with 96 GB HBM2e"),
        _of("H800", 989.4, 1978.9, 66.9, 80, 3350, 200, 50, 8, "DeepSeek-AI 2025, arXiv:2505.09343, section 4.1"),
        _of("H200", 989.4, 1978.9, 66.9, 141, 4800, 450, 50, 8, "NVIDIA H200 data sheet, SXM"),
        _of("GH200", 989.4, 1978.9, 66.9, 96, 4000, 450, 50, 1, "NVIDIA GH200 data sheet"),
        _of("B200", 2250, 4500, 75, 180, 7700, 900, 50, 8, "NVIDIA DGX B200 data sheet"),
        _of("B300", 2250, 4500, 75, 288, 8000, 900, 100, 8, "NVIDIA DGX B300 data sheet"),
        _of("GB200", 2500, 5000, 80, 186, 8000, 900, 50, 72, "NVIDIA GB200 NVL72 data sheet"),
        _of("GB300", 2500, 5000, 80, 288, 8000, 900, 100, 72, "NVIDIA GB300 NVL72 data sheet"),
        _of("L4", 121, 242, 30.3, 24, 300, 32, 12.5, 8, "NVIDIA L4 data sheet, PCIe 4.0 x16"),
        _of("RTX-4090", 165.2, 330.3, 82.6, 24, 1008, 32, 12.5, 8, "NVIDIA Ada architecture paper, appendix A"),
        _of("MI300X", 1307.4, 2614.9, 163.4, 192, 5300, 448, 50, 8, "AMD Instinct MI300X data sheet"),
    )
}


def find_accelerator(text: str) -> Accelerator:
    """The device that a text such as `A100-80GB SXM (Selene)` begins with.

    Raises:
        InputError: the catalogue has no such device.
    """
    words = re.sub(r"[^a-z0-9]", "", text.lower().split("(")[0])
    known = sorted(ACCELERATORS, key=len, reverse=True)
    for name in known:
        if words.startswith(re.sub(r"[^a-z0-9]", "", name.lower())):
            return ACCELERATORS[name]
    for name in known:  # a name without its memory means the larger
        if words and re.sub(r"[^a-z0-9]", "", name.lower()).startswith(re.sub(r"sxm.*", "", words)):
            return ACCELERATORS["H100-80GB" if words.startswith("h100") else name]
    raise InputError(f"there is no device {text!r} in the catalogue; {', '.join(ACCELERATORS)} would do")
