"""Seconds of a step where the layout is given.

The pipeline's part is what schedules come to: with `m` microbatches, the busiest rank's `m` forwards and backwards and,
once, those of all other ranks (1F1B; a `v`-th of them interleaved: Narayanan et al. 2021, arXiv:2104.04473, section
2.2). Zero-bubble orders put weight gradients into the gaps: what is left is (p - 1)(F + I - W) in the memory of 1F1B,
and nothing in twice that (Qi et al. 2023, arXiv:2401.10241, table 2), but never less than the first microbatch's way
through all stages and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from evenflow.cost.collectives import Collective, Fabric
from evenflow.cost.links import LinkCost, edge_kinds
from evenflow.cost.pinned.job import Pinned
from evenflow.cost.roofline import Roofline
from evenflow.spec.accelerators import Accelerator, FigureOrigin
from evenflow.spec.operators import Attention, LayerOperator, Matmul, Traffic

_HALF = 2  # bytes
_MASTER = 12  # fp32 weight and two moments


@dataclass(frozen=True, slots=True)
class BlockSeconds:
    """Seconds of one block for one microbatch on one rank, what its ranks exchange included.

    Attributes:
        forward_s: F.
        input_s: I, what is recomputed included.
        weight_s: W.
    """

    forward_s: float
    input_s: float
    weight_s: float

    @property
    def backward_s(self) -> float:
        """B."""
        return self.input_s + self.weight_s


def fabric_of(device: Accelerator, roofline: Roofline) -> Fabric:
    """A device's links as collectives reach them."""
    return Fabric(
        LinkCost(roofline.latency_s, device.node_bytes_per_s * roofline.link),
        LinkCost(2 * roofline.latency_s, device.network_bytes_per_s * roofline.network),
        device.node_devices,
    )


def link_origin(device: Accelerator, ranks: int, rank_devices: int) -> FigureOrigin:
    """Where the rates of a pipeline's edges come from; where some leave their node, the less certain of both."""
    kinds = edge_kinds(ranks, rank_devices, device.node_devices) or {False}
    found = [device.origin("network_bytes_per_s" if far else "node_bytes_per_s") for far in kinds]
    return max(found, key=get_args(FigureOrigin).index)


def block_seconds(job: Pinned, roofline: Roofline) -> BlockSeconds:
    """One block; where every second has a window, the mean of two."""
    it = job.architecture
    last = it.layers - 1
    found = [one_block(job, roofline, block) for block in ([last, last - 1] if it.window is not None else [last])]
    return BlockSeconds(*(sum(getattr(one, name) for one in found) / len(found) for name in BlockSeconds.__slots__))


def layer_seconds(job: Pinned, roofline: Roofline) -> tuple[float, float]:
    """Forward and backward of one block on one rank, its collectives over `tp`, `cp` and `ep` included."""
    one = block_seconds(job, roofline)
    return one.forward_s, one.backward_s


def one_block(job: Pinned, roofline: Roofline, block: int) -> BlockSeconds:
    """The block of a number."""
    fabric, device = fabric_of(job.device, roofline), job.device
    operators = job.architecture.block(block, job.micro_batch, job.seq, job.shards, job.is_flash)

    def seconds(kind: type) -> float:
        own = [operator for operator in operators if isinstance(operator, kind)]
        return roofline.seconds(own, device, job.is_eighth)

    products, attention, traffic = seconds(Matmul), seconds(Attention), seconds(Traffic)
    casts = _cast_bytes(operators) / (device.memory_bytes_per_s * roofline.memory) if job.is_eighth else 0.0
    least = roofline.launch_s * (_MIXTURE_KERNELS if job.architecture.is_mixture(block) else _KERNELS)
    shared = _tp_seconds(job, fabric)
    forward = max(products + attention + traffic + casts, least)
    exchanged = _keys_seconds(job, fabric, attention)
    routed = _routed_seconds(job, fabric)
    exchanged += max(0.0, routed - forward) if job.is_ep_overlapped else routed
    exposed = max(0.0, shared - products) if job.is_tp_overlapped else shared
    again = {
        "none": 0.0, "attention": attention, "operators": products / 2 + traffic, "full": forward + exposed + exchanged,
    }[job.redone]  # fmt: skip
    slower = roofline.attention_backward if job.is_flash else 2.0
    inputs = max(products + slower * attention + 2 * traffic + casts, least)
    return BlockSeconds(
        forward_s=forward + exposed + exchanged,
        input_s=inputs + (max(0.0, shared - products) if job.is_gradient_overlapped else shared) + exchanged + again,
        weight_s=products,
    )


# Kernels of a block's forward, which the host starts one by one: counted in Megatron-LM's eager layers, roughly.
_KERNELS = 25
_MIXTURE_KERNELS = 80


def _cast_bytes(operators: Sequence[LayerOperator]) -> float:
    """An input of a product in fp8 is read in half precision and written as it is and transposed."""
    return float(sum(4 * own.m * own.k * own.count for own in operators if isinstance(own, Matmul)))


def _tp_seconds(job: Pinned, fabric: Fabric) -> float:
    """Two sums over `tp`, or with sequence parallelism as much in two gathers and two scatters."""
    tokens = job.micro_batch * job.seq / job.cp
    return 2 * fabric.seconds("all-reduce", _HALF * tokens * job.architecture.hidden, job.tp)


def _keys_seconds(job: Pinned, fabric: Fabric, attention: float) -> float:
    """Keys and values of the whole sequence, gathered over `cp` beside attention."""
    it = job.architecture
    size = 2 * _HALF * job.micro_batch * job.seq * it.kv_heads * it.head_dim / job.tp
    return max(0.0, fabric.seconds("all-gather", size, job.cp, job.tp) - attention)


def _routed_seconds(job: Pinned, fabric: Fabric) -> float:
    """Tokens on their way to experts and back."""
    it = job.architecture
    if it.experts is None:
        return 0.0
    size = _HALF * job.micro_batch * job.seq / job.cp * it.hidden / job.tp
    return 2 * fabric.routed_s(size, it.experts.active, job.ep)


def step_seconds(job: Pinned, roofline: Roofline) -> float:
    """Seconds of one step."""
    it, fabric = job.architecture, fabric_of(job.device, roofline)
    block = block_seconds(job, roofline)
    one = block.forward_s + block.backward_s
    top = it.head(job.micro_batch, job.seq, job.shards)
    logits = [operator for operator in top if isinstance(operator, Traffic)]
    # the product thrice; the logits' traffic once where the loss is fused, and in the backward too where it is not
    again = -2 if job.is_loss_fused else 0
    head = 3 * roofline.seconds(top, job.device) + again * roofline.seconds(logits, job.device)
    looked_up, added = embedding_seconds(job, roofline)
    stages = [
        own.blocks * one + head * own.has_head + (looked_up + added) * own.has_embedding for own in job.holdings()
    ]
    backwards = [  # of the head's three products two are the backward's
        own.blocks * block.backward_s + 2 / 3 * head * own.has_head + added * own.has_embedding
        for own in job.holdings()
    ]
    hidden = _HALF * job.micro_batch * job.seq / job.cp * it.hidden / job.tp
    hop = fabric.seconds("send", hidden, 2, job.tp * job.cp * job.dp) if job.pp > 1 else 0.0
    compute = _pipeline(job, stages, block, hop)
    dense, experts = job.held_parameters()
    return (
        max(compute, _streamed(job, fabric, dense))
        + _exchange(job, fabric, stages, backwards)
        + _update(job, dense, experts, roofline)
    )


def embedding_seconds(job: Pinned, roofline: Roofline) -> tuple[float, float]:
    """Rows read and written, with one sum over `tp` of what each rank looked up; then gradients added to rows."""
    size = _HALF * job.micro_batch * job.seq / job.cp * job.architecture.hidden
    rate = job.device.memory_bytes_per_s * roofline.memory
    return 2 * size / rate + fabric_of(job.device, roofline).seconds("all-reduce", size, job.tp), 3 * size / rate


def _pipeline(job: Pinned, stages: Sequence[float], block: BlockSeconds, hop: float) -> float:
    busiest, others = max(stages), sum(stages) - max(stages)
    forward, inputs, weight = block.forward_s, block.input_s, block.weight_s
    one = forward + inputs + weight
    left = {
        "1f1b": 1.0, "interleaved-1f1b": 1 / job.vpp, "zb-1p": max(0.0, forward + inputs - weight) / one,
        "zb-2p": 0.0, "v-half": 0.5,
    }[job.order]  # fmt: skip
    total = job.microbatches * busiest + left * others
    if job.order in ("zb-1p", "zb-2p"):
        way = (forward + inputs) / one
        total = max(total, way * (sum(stages) + (job.microbatches - 1) * busiest) + weight / one * busiest)
    # A rank of 1F1B waits for what it sent to come back: p microbatches are under way while p - 1 hops are made there
    # and back. With several stages a rank, or where W fills gaps, there is other work meanwhile.
    is_plain = job.order == "1f1b" or (job.order == "interleaved-1f1b" and job.vpp == 1)
    waits = job.microbatches * (job.pp - 1) / job.pp if is_plain else 0.0
    return total + 2 * hop * ((job.pp - 1) + waits)


def _streamed(job: Pinned, fabric: Fabric, dense: float) -> float:
    """Parameters gathered in forward and backward and gradients reduced, beside the computation (ZeRO 3)."""
    if job.zero < 3:
        return 0.0
    size = _HALF * dense
    gathers = 2 * fabric.seconds("all-gather", size, job.dp, job.tp)
    return job.microbatches * (gathers + fabric.seconds("reduce-scatter", 2 * size, job.dp, job.tp))


def expert_replicas(replicas: int, ep: int) -> int:
    """Over how many an expert's gradients are added, where `ep` of the replicas have different experts."""
    return max(1, replicas // ep) if ep > 1 else replicas


def exchange_seconds(fabric: Fabric, held: tuple[float, float], replicas: int, ep: int, tp: int) -> tuple[float, float]:
    """Adding a rank's gradients up as shares, and gathering what became of them, in half precision.

    Args:
        fabric: between the replicas.
        held: the rank's dense parameters, and its experts'.
        replicas: over how many the dense are added.
        ep: over how many experts are spread.
        tp: processes between one replica and the next.
    """
    dense, experts = (_HALF * own for own in held)
    apart = expert_replicas(replicas, ep)
    reduced, gathered = (
        fabric.seconds(kind, dense, replicas, tp) + fabric.seconds(kind, experts, apart, tp * ep) for kind in _PARTS
    )
    return reduced, gathered


def _exchange(job: Pinned, fabric: Fabric, stages: Sequence[float], backwards: Sequence[float]) -> float:
    """Gradients over replicas, and parameters back, as far as the rank that is latest with them is waited for.

    Ranks end their last backward one after another, the first one last. Where exchanges go on beside the computation,
    gradients do so beside that backward, and what other replicas updated beside the first forward after.
    """
    if job.zero >= 3:
        return 0.0
    exposed, earlier = 0.0, 0.0
    for holding, whole, backward in zip(job.holdings(), stages, backwards, strict=True):
        held = job.dense_parameters(holding), job.expert_parameters(holding)
        reduced, gathered = exchange_seconds(fabric, held, job.dp * job.cp, job.ep, job.tp)
        if not job.zero:
            reduced, gathered = reduced + gathered, 0.0
        if job.is_overlapped:
            reduced, gathered = max(0.0, reduced - backward), max(0.0, gathered - (whole - backward))
        exposed = max(exposed, max(0.0, reduced - earlier) + gathered)
        earlier += backward / job.vpp
    return exposed


_PARTS: tuple[Collective, Collective] = ("reduce-scatter", "all-gather")


def _update(job: Pinned, dense: float, experts: float, roofline: Roofline) -> float:
    replicas = job.dp * job.cp
    owned = dense / (replicas if job.zero else 1) + experts / max(1, replicas // job.ep if job.zero else 1)
    return owned * (2 * _MASTER + 6) / (job.device.memory_bytes_per_s * roofline.memory)
