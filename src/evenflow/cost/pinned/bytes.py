"""Bytes of every pipeline rank where the layout is given: what is kept for good, for each microbatch, and in passing.

Activations are those of Korthikanti et al. 2022 (arXiv:2205.05198), section 4, by the widths of any decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.cost.pinned.job import Holding, Pinned
from evenflow.spec.accelerators import reserved_bytes

_HALF = 2
_MASTER = 12  # fp32 weight and two moments
# What a block that was computed again holds in its backward: what it kept, and gradients of about half of that.
_WITH_GRADIENTS = 1.5


@dataclass(frozen=True, slots=True)
class RankBytes:
    """Bytes of one pipeline rank at its fullest.

    Attributes:
        parameters: weights in half precision.
        gradients: of them.
        optimizer: weights in fp32 and two moments.
        activations: of all microbatches in flight, of those between I and W, and of the block at work.
        logits: and the loss's copies of them.
        buffers: gradients and parameters on their way between replicas, messages between ranks.
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float

    @property
    def allocated(self) -> float:
        """By tensors."""
        return float(sum(getattr(self, name) for name in self.__slots__))

    @property
    def reserved(self) -> float:
        """What the driver shows: the allocator's margin and the process's own memory beside the tensors."""
        return reserved_bytes(self.allocated)


def activation_bytes(job: Pinned) -> tuple[float, float]:
    """Of one block and one microbatch: kept from forward to backward, and held while one block is at work."""
    it = job.architecture
    tokens = job.micro_batch * job.seq / job.cp
    whole = job.tp if job.is_sequence_parallel else 1
    heads, context, width, routed = _widths(job)
    operand = 1 if job.is_eighth else _HALF  # inputs of products are kept as they entered
    cut = tokens * (_HALF * (heads + width * (2 if it.gated else 1)) + operand * (context + width)) / job.tp
    kept = tokens * it.hidden * ((3 * _HALF + 2 * operand) / whole + operand * routed / job.tp) + cut
    scores = 0.0 if job.is_flash else 5 * job.micro_batch * it.heads * job.seq * job.seq / job.tp
    if job.redone == "none":
        kept += scores
    if job.redone == "full":
        return _HALF * tokens * it.hidden / whole, _WITH_GRADIENTS * (kept + scores)
    if job.redone == "operators":
        products = (it.attention_matrices()[0][1] + it.attention_matrices()[1][1] + width) / job.tp
        return _HALF * tokens * (3 * it.hidden / whole + context / job.tp + products), kept
    return kept, 0.0


def pending_bytes(job: Pinned) -> float:
    """Of one block and one microbatch, kept from I to W: what products took, and gradients of what they gave.

    32 s b h bytes of GPT's layer (Qi et al. 2023, arXiv:2401.10241, table 1); all else is let go of by I.
    """
    it = job.architecture
    tokens = job.micro_batch * job.seq / job.cp
    whole = job.tp if job.is_sequence_parallel else 1
    heads, context, width, routed = _widths(job)
    operand = 1 if job.is_eighth else _HALF
    taken = operand * (it.hidden * (2 / whole + routed / job.tp) + (context + width) / job.tp)
    if it.latent is not None:
        taken += operand * (it.latent.query_rank + it.latent.key_rank)
    given = it.hidden * (2 / whole + routed / job.tp) + (heads + width * (2 if it.gated else 1)) / job.tp
    return tokens * (taken + _HALF * given)


def _widths(job: Pinned) -> tuple[int, int, int, int]:
    """Of all that enters attention and of what leaves it; of the feed-forward part; experts that a token visits."""
    it = job.architecture
    *enters, (context, _) = it.attention_matrices()
    heads = sum(outputs for _, outputs in enters)
    if it.experts is None:
        return heads, context, it.ffn, 0
    return heads, context, it.experts.active * it.experts.ffn + it.experts.shared_ffn, it.experts.active


def _in_flight(job: Pinned, rank: int) -> float:
    """Microbatches whose activations of all its blocks a rank holds at once."""
    after, all_of = job.pp - rank, job.microbatches
    match job.order:
        case "zb-2p":
            return min(all_of, 2 * job.pp - 1 if rank == 0 else 2 * after)
        case "v-half":
            return min(all_of, (job.pp + 1) / 2)
        case "interleaved-1f1b" if job.vpp > 1:
            return min(all_of, (2 * (after - 1) + (job.vpp - 1) * job.pp + 1) / job.vpp)
        case "zb-1p":
            return min(all_of, job.pp, 2 * after - 1)
        case _:
            return min(all_of, after)


def _put_off(job: Pinned, rank: int) -> float:
    """Microbatches that a rank has between I and W at most: as many as its memory has room for beside those."""
    most = {"zb-1p": job.pp, "zb-2p": 2 * job.pp - 1}.get(job.order, 0)
    return max(min(job.microbatches, most) - _in_flight(job, rank), 0)


def rank_bytes(job: Pinned, rank: int) -> RankBytes:
    """The bytes of one pipeline rank."""
    it, holding = job.architecture, job.holdings()[rank]
    dense, experts = job.dense_parameters(holding), job.expert_parameters(holding)
    replicas = job.dp * job.cp
    apart = [max(1, replicas // job.ep)] * 3 if job.zero else [1] * 3
    parameters, gradients, optimizer = {0: (1, 1, 1), 1: (1, 1, replicas), 2: (1, replicas, replicas)}.get(
        job.zero, (replicas,) * 3
    )
    kept, held = activation_bytes(job)
    tokens = job.micro_batch * job.seq / job.cp
    copies = 6 if job.is_loss_fused else 14
    # the embedding's output, and what the head's norm and product keep of the last block's
    ends = 2 * _HALF * tokens * it.hidden / (job.tp if job.is_sequence_parallel else 1)
    logits = copies * tokens * it.vocab / job.tp if holding.has_head else 0.0
    # the head's W takes the gradient of its logits, and what the product took
    put_off, of_head = _put_off(job, rank), _HALF * tokens * it.vocab / job.tp + ends / 2
    waiting = put_off * (holding.blocks * pending_bytes(job) + of_head * holding.has_head)
    return RankBytes(
        parameters=_HALF * (dense / parameters + experts),
        gradients=job.gradient_bytes * (dense / gradients + experts),
        optimizer=_MASTER * (dense / optimizer + experts / apart[2]),
        # logits are let go of before a block is at work
        activations=_in_flight(job, rank) * holding.blocks * kept
        + waiting
        + max(held - logits, 0.0)
        + ends * holding.has_head,
        logits=logits,
        buffers=_buffers(job, holding),
    )


def _buffers(job: Pinned, holding: Holding) -> float:
    """Buckets, hidden states on their way, and under ZeRO 3 parameters of two blocks and a gradient being added."""
    it = job.architecture
    hidden = _HALF * job.micro_batch * job.seq / job.cp * it.hidden / (job.tp if job.is_sequence_parallel else 1)
    waiting = job.bucket_bytes + (2 * hidden * job.vpp if job.pp > 1 else 0.0)
    if job.zero < 3:
        return waiting
    block = it.block_parameters(it.layers - 1) - (it.expert_parameters() if it.is_mixture(it.layers - 1) else 0)
    ends = it.vocab * it.hidden * (holding.has_embedding + holding.has_head)
    return waiting + (_HALF * (2 * block + ends) + 4 * max(block, ends / 2)) / job.tp


def worst_rank(job: Pinned) -> int:
    """The pipeline rank that holds most."""
    return max(range(job.pp), key=lambda rank: rank_bytes(job, rank).allocated)


def peak_bytes(job: Pinned, is_last_rank: bool = False, is_driver: bool = False) -> float:
    """Of the rank that holds most.

    Args:
        job: the job.
        is_last_rank: of the last pipeline rank, whichever holds most.
        is_driver: as `nvidia-smi` shows it: reserved rather than allocated.
    """
    found = rank_bytes(job, job.pp - 1 if is_last_rank else worst_rank(job))
    return found.reserved if is_driver else found.allocated
