"""Seconds of operators on a device of the catalogue: a roofline whose efficiency depends on the operator's shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from evenflow.spec.accelerators import Accelerator
from evenflow.spec.operators import Attention, LayerOperator, Matmul, Traffic

_REFERENCE = 312e12  # A100's dense peak in half precision
_TILE = 128  # rows and columns of the result that one block of threads makes


@dataclass(frozen=True, slots=True)
class Roofline:
    """The few figures that data sheets do not give: assumed, each common to all devices. `benchmarks.fit` fits others.

    Attributes:
        matmul: share of the peak that a large product reaches.
        depth: k at which a product reaches half of that.
        attention: share of the peak that fused attention reaches.
        memory: share of the memory's peak rate.
        launch_s: seconds that each operator takes beside.
        link: share of a link's peak rate.
        latency_s: of a message.
        throttle: how the share shrinks as peaks grow faster than power does: (A100's peak / peak) to this.
    """

    matmul: float = 0.72
    depth: float = 256.0
    attention: float = 0.45
    memory: float = 0.75
    launch_s: float = 4e-6
    link: float = 0.7
    latency_s: float = 8e-6
    throttle: float = 0.25

    def seconds(self, operators: Sequence[LayerOperator], device: Accelerator, is_eighth: bool = False) -> float:
        """The forward of a layer.

        Args:
            operators: what it computes on one rank.
            device: on what.
            is_eighth: products are computed in fp8.
        """
        return sum(self._one(operator, device, is_eighth) for operator in operators)

    def _one(self, operator: LayerOperator, device: Accelerator, is_eighth: bool) -> float:
        rate = device.memory_bytes_per_s * self.memory
        match operator:
            case Matmul(m=m, n=n, k=k, count=count):
                peak = device.eighth_flops if is_eighth else device.half_flops
                tiles = math.ceil(m / _TILE) * math.ceil(n / _TILE) * _TILE * _TILE
                flops = 2 * tiles * k * count
                moved = 2 * count * (m * k + k * n + m * n)
                share = self.matmul * k / (k + self.depth) * self._sustained(peak)
                return max(flops / (peak * share), moved / rate) + self.launch_s
            case Attention():
                return (
                    operator.seen_flops / (device.half_flops * self.attention * self._sustained(device.half_flops))
                    + self.launch_s
                )
            case Traffic(moved_bytes=moved):
                return moved / rate + self.launch_s
        assert_never(operator)

    def _sustained(self, peak: float) -> float:
        return float(min(1.0, (_REFERENCE / peak) ** self.throttle))
