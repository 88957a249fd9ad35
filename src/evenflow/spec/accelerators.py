"""Devices by their makers' data sheets: dense peak rates, memory, power, and links inside a node and between nodes.

Looked up on 2026-11-25, where data sheets themselves were not at hand in pages that copy them; the address stands
beside each device. What no page confirmed is named in `assumed`. Peaks are without sparsity.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evenflow.errors import InputError
from evenflow.spec.wires import WIRES

_TERA = 1e12
# What a process holds on a device before its first tensor (CUDA's context, libraries' workspaces, communicators), and
# by how much the allocator's reserved memory exceeds what is allocated. Assumed.
CONTEXT_BYTES = 2e9
RESERVED_MARGIN = 0.08
FigureOrigin = Literal["measured", "analytic", "assumed"]  # analytic: as the data sheet works it out


def reserved_bytes(allocated: float) -> float:
    """What the driver shows where tensors take so much: the allocator's margin and the process's own memory beside."""
    return allocated * (1 + RESERVED_MARGIN) + CONTEXT_BYTES


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
        network_bytes_per_s: one direction of its share of the network between nodes.
        node_devices: devices that `node_bytes_per_s` joins.
        source: the data sheet, and where it was read.
        watts: its power limit.
        processors: streaming multiprocessors, compute units or cores.
        node_wire: what `node_bytes_per_s` is the rate of.
        network_wire: what `network_bytes_per_s` is the rate of.
        assumed: names of the figures that no page confirmed; what nodes are built of is never the device's to say.
        measured: names of the figures that were measured on the device itself.
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
    watts: float
    processors: int
    node_wire: str = ""
    network_wire: str = ""
    assumed: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()

    @property
    def usable_bytes(self) -> int:
        """What tensors may take of its memory: less the process's own and the allocator's margin."""
        return max(int((self.memory_bytes - CONTEXT_BYTES) / (1 + RESERVED_MARGIN)), 0)

    def origin(self, figure: str) -> FigureOrigin:
        """Where one of its figures comes from."""
        if figure in self.measured:
            return "measured"
        return "assumed" if figure in self.assumed else "analytic"


def _of(
    name: str, flops: tuple[float, float, float], memory: tuple[float, float], built: tuple[float, int],
    wires: tuple[str, str], devices: int, source: str, assumed: Sequence[str] = (),
) -> Accelerator:  # fmt: skip
    """TFLOP/s (half, fp8, fp32), GB and GB/s, watts and processors, as data sheets print them."""
    half, eighth, single = flops
    size, rate = memory
    node, network = (WIRES[wire].bytes_per_s for wire in wires)
    return Accelerator(
        name, half * _TERA, eighth * _TERA, single * _TERA, size * 1e9, rate * 1e9, node, network, devices, source,
        *built, *wires, (*assumed, "network_bytes_per_s"),
    )  # fmt: skip


_A100 = "NVIDIA A100 data sheet nvidia-1758950-r4, SXM; glennklockwood.com/garden/processors/A100"
_HOPPER = (989.4, 1978.9, 66.9)
_H100 = "NVIDIA H100 white paper, SXM5; glennklockwood.com/garden/processors/h100"
_DDR = ("PCIe 5 x16", "Ethernet 100")

ACCELERATORS: dict[str, Accelerator] = {
    device.name: device
    for device in (
        _of("V100", (125, 125, 15.7), (32, 900), (300, 80), ("NVLink 2", "InfiniBand EDR"), 8,
            "NVIDIA V100 data sheet us-1165301-r5, SXM2; Lightning-AI/pytorch-lightning utilities/throughput.py; "
            "maosong.website/p/nvidia-gpu-specs", ["memory_bytes"]),
        _of("A100-40GB", (312, 312, 19.5), (40, 1555), (400, 108), ("NVLink 3", "InfiniBand HDR"), 8, _A100),
        _of("A100-80GB", (312, 312, 19.5), (80, 2039), (400, 108), ("NVLink 3", "InfiniBand HDR"), 8, _A100),
        _of("H100-80GB", _HOPPER, (80, 3350), (700, 132), ("NVLink 4", "InfiniBand NDR"), 8, _H100),
        _of("H100-96GB", _HOPPER, (96, 2400), (700, 132), ("NVLink 4", "RoCE 400"), 8,
            _H100 + "; pytorch/torchtitan benchmarks/llama3_h100_202412_torchtitan.md: 96 GB of HBM2e, 2.4 TB/s"),
        _of("H800", _HOPPER, (80, 3350), (700, 132), ("NVLink 4 (H800)", "InfiniBand NDR"), 8,
            "aiwiki.ai/wiki/nvidia_h800: an H100 but for NVLink and fp64", ["watts"]),
        _of("H200", _HOPPER, (141, 4800), (700, 132), ("NVLink 4", "InfiniBand NDR"), 8,
            "anandtech.com/show/21136; mlcommons/inference_results_v4.1 closed/NVIDIA/systems/H200-SXM-141GBx8"),
        _of("GH200", _HOPPER, (96, 4000), (700, 132), ("NVLink 4", "InfiniBand NDR"), 1,
            "spheron.network/blog/nvidia-gh200-guide (96 GB HBM3), nishikiout.net/entry/2023/08/09 (4 TB/s)",
            ["half_flops", "eighth_flops", "single_flops", "watts"]),
        _of("B200", (2250, 4500, 75), (180, 7672), (1000, 148), ("NVLink 5", "InfiniBand NDR"), 8,
            "NVIDIA HGX B200; verda.com/blog/gb300-nvl72-architecture; memory's rate from pytorch/ao pull 4002; "
            "mlcommons/inference_results_v6.0 closed/Nebius/systems/nebius_b200_n1.json (180 GB, NDR)"),
        _of("B300", (2250, 4500, 75), (270, 7700), (1100, 148), ("NVLink 5", "InfiniBand XDR"), 8,
            "NVIDIA HGX B300; verda.com/blog/gb300-nvl72-architecture; glennklockwood.com/garden/processors/B300",
            ["processors"]),
        _of("GB200", (2500, 5000, 90), (186, 8000), (1200, 148), ("NVLink 5", "InfiniBand NDR"), 72,
            "NVIDIA GB200 NVL72; glennklockwood.com/garden/processors/B200 (1,200 W); "
            "mlcommons/inference_results_v6.1 closed/Crusoe/systems (186 GB)", ["processors"]),
        _of("GB300", (2500, 5000, 80), (279, 8000), (1400, 148), ("NVLink 5", "InfiniBand XDR"), 72,
            "NVIDIA GB300 NVL72; verda.com/blog/gb300-nvl72-architecture; glennklockwood.com/garden/processors/B300",
            ["processors"]),
        _of("L4", (121, 242.5, 30.3), (24, 300), (72, 60), ("PCIe 4 x16", "Ethernet 100"), 8,
            "NVIDIA L4 data sheet (242 and 485 with sparsity); grokipedia.com/page/NVIDIA_L4_vs_L40S, fpsbench.com"),
        _of("RTX-4090", (165.2, 330.3, 82.6), (24, 1008), (450, 128), ("PCIe 4 x16", "Ethernet 100"), 8,
            "NVIDIA Ada architecture paper; waredb.com/processor/nvidia-geforce-rtx-4090 (products in fp32)"),
        _of("MI300X", (1300, 2600, 163.4), (192, 5300), (750, 304), ("Infinity Fabric", "RoCE 400"), 8,
            "AMD MI300X data sheet; pytorch/torchtitan tools/utils.py (1,300), localaimaster.com/blog/mi300x-deep-dive",
            ["single_flops"]),
        _of("EPYC-9654", (14.75, 14.75, 7.37), (768, 460.8), (360, 96), _DDR, 2,
            "hpctech.co.jp/product/amd-epyc-9004-series (96 cores of 2.4 GHz; 32 FLOP a cycle in fp32, 64 in bf16), "
            "tomshardware.fr/epyc-genoa (12 channels)", ["half_flops", "single_flops", "memory_bytes"]),
        _of("Grace-CPU", (14.2, 14.2, 7.1), (480, 500), (250, 72), _DDR, 2,
            "hardwaretimes.com/nvidia-announces-grace-cpu: half of a Superchip's 7.1 TFLOP/s in fp64 and 1 TB/s",
            ["half_flops", "single_flops"]),
    )
}  # fmt: skip


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


def named_accelerator(name: str) -> Accelerator:
    """The device of this very name, however it is cased.

    Raises:
        InputError: there is none; the nearest names are given.
    """
    known = {own.lower(): own for own in ACCELERATORS}
    if name.lower() in known:
        return ACCELERATORS[known[name.lower()]]
    begun = [own for own in known if name and own.startswith(name.lower())]
    near = begun or difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.4)
    would = ", ".join(known[own] for own in near) or ", ".join(ACCELERATORS)
    raise InputError(f"device {name!r} is not in the catalogue; {would} would do")
