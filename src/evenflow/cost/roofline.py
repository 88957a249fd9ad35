"""Seconds of operators on a device of the catalogue: a roofline whose efficiency depends on the operator's shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import assert_never

from evenflow.spec.accelerators import Accelerator
from evenflow.spec.operators import Attention, LayerOperator, Matmul, Traffic

_REFERENCE = 312e12 / 400  # A100's dense peak in half precision for each watt of its limit
# Rows and columns of a result that one processor of the device makes at a time, and the rate of such a tile: smaller
# ones read their operands more often. A library takes what is quickest for a shape.
_TILES = ((256, 128, 1.0), (128, 128, 0.92), (128, 64, 0.75))


@dataclass(frozen=True, slots=True)
class Roofline:
    """The few figures that data sheets do not give, each common to all devices.

    `benchmarks.fit` begins at them and looks for better ones on half of the published rows: none is better there by
    more than noise. What is computed with them is analytic: no measurement of the device at hand.

    Attributes:
        matmul: share of the peak that a large product reaches.
        depth: k at which a product reaches half of that.
        attention: share of the peak that fused attention reaches with wide heads.
        attention_depth: width of a head at which it reaches half of that.
        attention_backward: how much longer its backward takes than its forward (of 2.5 times the FLOPs).
        memory: share of the memory's peak rate.
        launch_s: seconds that the host takes to start a kernel.
        link: share of the peak rate of a link inside a node.
        network: share of the peak rate of a link between nodes.
        latency_s: of a message.
        throttle: how the share shrinks where a device has more FLOP/s for a watt than A100: (A100's / its own) to this.
    """

    matmul: float = 0.75
    depth: float = 72.0
    attention: float = 0.5
    attention_depth: float = 60.0
    attention_backward: float = 3.0
    memory: float = 0.85
    launch_s: float = 24e-6
    link: float = 0.71
    network: float = 0.9
    latency_s: float = 8e-6
    throttle: float = 0.54

    def seconds(
        self,
        operators: Sequence[LayerOperator],
        device: Accelerator,
        is_eighth: bool = False,
        is_single: bool = False,
    ) -> float:
        """The forward of a layer.

        Args:
            operators: what it computes on one rank.
            device: on what.
            is_eighth: products are computed in fp8.
            is_single: all is computed in fp32, without tensor cores.
        """
        return sum(self._one(operator, device, is_eighth, is_single) for operator in operators)

    def _one(self, operator: LayerOperator, device: Accelerator, is_eighth: bool, is_single: bool) -> float:
        rate = device.memory_bytes_per_s * self.memory
        sustained = self._sustained(device)
        plain = device.single_flops if is_single else device.half_flops
        match operator:
            case Matmul(m=m, n=n, k=k, count=count):
                peak = device.eighth_flops if is_eighth else plain
                moved = (4 if is_single else 2) * count * (m * k + k * n + m * n)
                share = self._product(k) * _filling(m, n, count, device.processors)
                return max(2 * m * n * k * count / (peak * sustained * share), moved / rate)
            case Attention() if operator.is_fused:
                width = operator.score_dim / (operator.score_dim + self.attention_depth)
                return operator.seen_flops / (plain * sustained * self.attention * width)
            case Attention():
                product = operator.flops / (plain * sustained * self._product(operator.score_dim))
                return product + operator.score_bytes / rate
            case Traffic(moved_bytes=moved):
                return moved / rate
        assert_never(operator)

    def _product(self, k: int) -> float:
        return self.matmul * k / (k + self.depth)

    def _sustained(self, device: Accelerator) -> float:
        """The part of the peak clock that a device keeps up under its power limit; all where that is not known."""
        if not device.watts:
            return 1.0
        return float(min(1.0, (_REFERENCE * device.watts / device.half_flops) ** self.throttle))


@cache
def _filling(m: int, n: int, count: int, processors: int) -> float:
    """The part of a device that a product of `m` x `n` results keeps at work: tiles go round by round."""
    best = 0.0
    for rows, columns, rate in _TILES:
        for height, width in ((rows, columns), (columns, rows)):
            tiles = math.ceil(m / height) * math.ceil(n / width) * count
            rounds = math.ceil(tiles / processors)
            best = max(best, rate * m * n * count / (rounds * processors * height * width))
    return best
