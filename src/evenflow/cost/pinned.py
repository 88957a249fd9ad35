"""A step's seconds and a rank's bytes where every axis is given: closed forms of the schedules, for any size of job.

The pipeline's part is what the simulator gives for equal stages: `m + (p - 1) / v` microbatches of 1F1B and its
interleaved form (Narayanan et al. 2021, section 2.2), `m + (p - 1) / 3` of zero-bubble orders in the memory of 1F1B and
`m` in twice that (Qi et al. 2024, table 2). Activation bytes are those of Korthikanti et al. 2022, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evenflow.cost.collectives import Fabric
from evenflow.cost.costs import LinkCost
from evenflow.cost.roofline import Roofline
from evenflow.spec.accelerators import Accelerator
from evenflow.spec.architecture import Architecture
from evenflow.spec.operators import Attention, LayerOperator, Shards

Order = Literal["1f1b", "interleaved-1f1b", "zb-1p", "zb-2p", "v-half"]
Redone = Literal["none", "attention", "full"]
_HALF = 2  # bytes
_MASTER = 12  # fp32 weight and two moments
_CONTEXT_BYTES = 1e9  # what a process holds before its first tensor, in figures of nvidia-smi; assumed


@dataclass(frozen=True, slots=True)
class Pinned:
    """A job whose layout is given.

    Attributes:
        architecture: what is trained.
        device: on what.
        tp: ranks that share a layer's widths.
        pp: pipeline ranks.
        dp: replicas.
        cp: ranks that share a sequence.
        ep: ranks that share the experts.
        vpp: stages of each rank.
        order: of the pipeline.
        micro_batch: sequences.
        global_batch: sequences.
        seq: tokens of a sequence.
        redone: what backward computes again.
        zero: 0 to 3: whether optimizer state, gradients and parameters are shared out over replicas.
        is_eighth: products in fp8.
        is_flash: attention keeps no scores.
        is_sequence_parallel: norms and residuals are shared out over `tp`.
    """

    architecture: Architecture
    device: Accelerator
    tp: int
    pp: int
    dp: int
    cp: int
    ep: int
    vpp: int
    order: Order
    micro_batch: int
    global_batch: int
    seq: int
    redone: Redone
    zero: int
    is_eighth: bool
    is_flash: bool
    is_sequence_parallel: bool

    @property
    def microbatches(self) -> int:
        """Of one replica and step."""
        return max(1, self.global_batch // (self.micro_batch * self.dp))

    @property
    def shards(self) -> Shards:
        """How a layer is cut."""
        return Shards(self.tp, self.cp, self.ep)

    @property
    def stage_layers(self) -> float:
        """Blocks of the rank that has most."""
        blocks = self.architecture.layers
        return -(-blocks // (self.pp * self.vpp)) * self.vpp if blocks >= self.pp * self.vpp else blocks / self.pp

    def held_parameters(self) -> tuple[float, float]:
        """Of the busiest rank: those replicated over dp, and those of experts."""
        it = self.architecture
        last = it.layers - 1
        routed = it.expert_parameters() if it.is_mixture(last) else 0
        dense = self.stage_layers * (it.block_parameters(last) - routed) + it.embedding_parameters
        dense += it.head_parameters if self.pp == 1 else 0
        return dense / self.tp, self.stage_layers * routed / (self.ep * (self.tp if self.ep == 1 else 1))

    def flops(self, is_hardware: bool) -> float:
        """Of one step over all devices, as papers count them: attention over the whole square; thrice the forward.

        Args:
            is_hardware: what backward computes again counts too.
        """
        it, whole = self.architecture, Shards()
        blocks = [it.block(block, 1, self.seq, whole) for block in {0, it.layers - 1}]
        block = sum(_flops(operators) for operators in blocks) / len(blocks) * it.layers
        head = _flops(it.head(1, self.seq, whole))
        times = 4 if is_hardware and self.redone == "full" else 3
        return self.global_batch * (times * block + 3 * head)


def _flops(operators: tuple[LayerOperator, ...]) -> float:
    return float(sum(operator.flops for operator in operators))


def layer_seconds(job: Pinned, roofline: Roofline) -> tuple[float, float]:
    """Forward and backward of one block on one rank, its collectives over `tp`, `cp` and `ep` included."""
    it, fabric = job.architecture, _fabric(job.device, roofline)
    operators = it.block(it.layers - 1, job.micro_batch, job.seq, job.shards)
    if it.window is not None:
        other = it.block(it.layers - 2, job.micro_batch, job.seq, job.shards)
        seconds = (roofline.seconds(operators, job.device, job.is_eighth)
                   + roofline.seconds(other, job.device, job.is_eighth)) / 2  # fmt: skip
    else:
        seconds = roofline.seconds(operators, job.device, job.is_eighth)
    attention = roofline.seconds([one for one in operators if isinstance(one, Attention)], job.device)
    shared = _shared_seconds(job, fabric)
    again = {"none": 0.0, "attention": attention, "full": seconds + shared}[job.redone]
    return seconds + shared, 2 * seconds + 0.5 * attention + shared + again


def _shared_seconds(job: Pinned, fabric: Fabric) -> float:
    it = job.architecture
    tokens = job.micro_batch * job.seq / job.cp
    size = _HALF * tokens * it.hidden
    total = 2 * fabric.seconds("all-reduce", size, job.tp)
    keys = 2 * _HALF * tokens * job.cp * it.kv_heads * it.head_dim / job.tp
    total += fabric.seconds("all-gather", keys, job.cp, job.tp)
    if it.experts is not None:
        total += 2 * fabric.seconds("all-to-all", size * it.experts.active / job.tp, job.ep)
    return total


def step_seconds(job: Pinned, roofline: Roofline) -> float:
    """Seconds of one step."""
    it, fabric = job.architecture, _fabric(job.device, roofline)
    forward, backward = layer_seconds(job, roofline)
    head = 3 * roofline.seconds(it.head(job.micro_batch, job.seq, job.shards), job.device)
    one = job.stage_layers * (forward + backward)
    stage = one + (head if job.pp == 1 else max(0.0, head - (forward + backward) * _spare(job)))
    hidden = _HALF * job.micro_batch * job.seq / job.cp * it.hidden / job.tp
    hop = fabric.seconds("send", hidden, 2, job.tp * job.cp * job.dp) if job.pp > 1 else 0.0
    warm = (job.pp - 1) * {"zb-1p": 1 / 3, "zb-2p": 0.0, "v-half": 0.5}.get(job.order, 1 / job.vpp)
    compute = job.microbatches * stage + warm * one + 2 * hop * ((job.pp - 1) + job.microbatches * (job.vpp - 1))
    dense, experts = job.held_parameters()
    return max(compute, _streamed(job, fabric, dense)) + _reduced(job, fabric, dense, experts, roofline)


def _spare(job: Pinned) -> float:
    """Blocks by which the last rank has fewer than the busiest."""
    return job.stage_layers * job.pp - job.architecture.layers


def _streamed(job: Pinned, fabric: Fabric, dense: float) -> float:
    """Parameters gathered in forward and backward and gradients reduced, beside the computation (ZeRO 3)."""
    if job.zero < 3:
        return 0.0
    size = _HALF * dense
    gathers = 2 * fabric.seconds("all-gather", size, job.dp, job.tp)
    return job.microbatches * (gathers + fabric.seconds("reduce-scatter", 2 * size, job.dp, job.tp))


def _reduced(job: Pinned, fabric: Fabric, dense: float, experts: float, roofline: Roofline) -> float:
    """Gradients over replicas after the last backward, and the update."""
    replicas = job.dp * job.cp
    total = 0.0
    if job.zero < 3:
        total += fabric.seconds("all-reduce", _HALF * dense, replicas, job.tp)
        total += fabric.seconds("all-reduce", _HALF * experts, max(1, replicas * job.tp // job.ep), job.ep)
    owned = dense / (replicas if job.zero else 1) + experts / max(1, replicas // job.ep if job.zero else 1)
    return total + owned * (2 * _MASTER + 6) / (job.device.memory_bytes_per_s * roofline.memory)


def _fabric(device: Accelerator, roofline: Roofline) -> Fabric:
    return Fabric(
        LinkCost(roofline.latency_s, device.node_bytes_per_s * roofline.link),
        LinkCost(2 * roofline.latency_s, device.network_bytes_per_s * roofline.link),
        device.node_devices,
    )


def activation_bytes(job: Pinned) -> tuple[float, float]:
    """Of one block and one microbatch: kept from forward to backward, and held while one block is at work."""
    it = job.architecture
    tokens = job.micro_batch * job.seq / job.cp
    whole = job.tp if job.is_sequence_parallel else 1
    width = it.ffn
    if it.experts is not None:
        width = it.experts.active * it.experts.ffn + it.experts.shared_ffn
    heads = sum(outputs for _, outputs in it.attention_matrices()[:-1])
    cut = _HALF * tokens * (heads + it.attention_matrices()[-1][0] + width * (3 if it.gated else 2)) / job.tp
    kept = _HALF * tokens * it.hidden * 5 / whole + cut
    if not job.is_flash and job.redone == "none":
        kept += 5 * job.micro_batch * it.heads * job.seq * job.seq / job.tp
    if job.redone == "full":
        return _HALF * tokens * it.hidden / whole, kept
    return kept, 0.0


def peak_bytes(job: Pinned, is_last_rank: bool = False, is_driver: bool = False) -> float:
    """Of the rank that holds most (the first, or the last where its logits are more).

    Args:
        job: the job.
        is_last_rank: of the last pipeline rank, whichever holds most.
        is_driver: as `nvidia-smi` shows it: a process's context is included.
    """
    it = job.architecture
    dense, experts = job.held_parameters()
    replicas = job.dp * job.cp
    own = {0: (1, 1, 1), 1: (1, 1, replicas), 2: (1, replicas, replicas), 3: (replicas,) * 3}[job.zero]
    gradient = 4 if job.zero < 3 else _HALF
    state = dense * (_HALF / own[0] + gradient / own[1] + _MASTER / own[2])
    state += experts * (_HALF + gradient + _MASTER / (max(1, replicas // job.ep) if job.zero else 1))
    kept, held = activation_bytes(job)
    flight = min(job.microbatches, {"zb-2p": 2 * job.pp, "v-half": (job.pp + 1) / 2}.get(job.order, job.pp))
    if job.vpp > 1:
        flight = min(job.microbatches, job.pp * (1 + (job.pp - 1) / (job.pp * job.vpp)))
    logits = 6 * job.micro_batch * job.seq / job.cp * it.vocab / job.tp
    first = flight * job.stage_layers * kept + held
    last = job.stage_layers * kept + held + logits
    activations = last if is_last_rank or job.pp == 1 else max(first, last)
    return state + activations + (_CONTEXT_BYTES if is_driver else 0.0)
