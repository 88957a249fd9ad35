"""A job whose layout is given, and which layers each of its pipeline ranks holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evenflow.spec.accelerators import Accelerator
from evenflow.spec.architecture import Architecture
from evenflow.spec.operators import LayerOperator, Shards

Order = Literal["1f1b", "interleaved-1f1b", "zb-1p", "zb-2p", "v-half"]
Redone = Literal["none", "attention", "operators", "full"]


@dataclass(frozen=True, slots=True)
class Holding:
    """What a pipeline rank holds: blocks, and perhaps the embedding and the head."""

    blocks: int
    has_embedding: bool
    has_head: bool


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
        redone: what backward computes again: nothing, the attention's scores, every operator but half of the products
            (torchtitan's selective recomputation), or the whole block.
        zero: 0 to 3: whether optimizer state, gradients and parameters are shared out over replicas.
        is_eighth: products in fp8.
        is_flash: attention keeps no scores.
        is_sequence_parallel: norms and residuals are shared out over `tp`.
        is_overlapped: what replicas exchange goes on beside the computation.
        is_tp_overlapped: so does what `tp` exchanges in the forward, piece by piece with the products next to it.
        is_gradient_overlapped: so does what `tp` exchanges in the backward, beside the products that make weights'
            gradients (Korthikanti et al. 2022, section 4.2.2).
        is_ep_overlapped: what `ep` exchanges goes on beside another microbatch's computation (DeepSeek-AI 2024,
            arXiv:2412.19437, section 3.2.1; Megatron-LM does it where a rank has several stages).
        is_loss_fused: the loss makes no copies of the logits in fp32 but one; else as PyTorch's own functions do it.
        is_balanced: blocks are shared out by FLOPs, the head's included; else equally.
        gradient_bytes: that a parameter's gradient takes.
        bucket_bytes: of buffers in which gradients and parameters wait to be sent together.
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
    is_overlapped: bool = True
    is_tp_overlapped: bool = False
    is_gradient_overlapped: bool = True
    is_ep_overlapped: bool = False
    is_loss_fused: bool = True
    is_balanced: bool = False
    gradient_bytes: int = 4
    bucket_bytes: float = 0.0

    @property
    def microbatches(self) -> int:
        """Of one replica and step."""
        return max(1, self.global_batch // (self.micro_batch * self.dp))

    @property
    def devices(self) -> int:
        """All of them; experts are shared out within the replicas."""
        return self.tp * self.pp * self.dp * self.cp

    @property
    def shards(self) -> Shards:
        """How a layer is cut."""
        return Shards(self.tp, self.cp, self.ep, self.is_sequence_parallel)

    @property
    def stage_layers(self) -> int:
        """Blocks of the rank that has most."""
        return max(holding.blocks for holding in self.holdings())

    def holdings(self) -> tuple[Holding, ...]:
        """What each pipeline rank holds.

        Blocks that do not divide by the stages are fewer at the ends, where embedding and head are. In a V the first
        rank has both ends.
        """
        last = 0 if self.order == "v-half" else self.pp - 1
        blocks = self._balanced() if self.is_balanced and self.pp > 1 else self._equal()
        return tuple(Holding(count, rank == 0, rank == last) for rank, count in enumerate(blocks))

    def _equal(self) -> list[int]:
        least, more = divmod(self.architecture.layers, self.pp)
        blocks = [least] * self.pp
        middle = sorted(range(self.pp), key=lambda rank: (rank in (0, self.pp - 1), rank == 0, rank))
        for rank in middle[:more]:
            blocks[rank] += 1
        return blocks

    def _balanced(self) -> list[int]:
        """The split whose busiest rank has least to compute; what is left over goes to late ranks, which hold less."""
        it = self.architecture
        block, top = it.block(it.layers - 1, 1, self.seq, Shards()), it.head(1, self.seq, Shards())
        head = _flops(top) / _flops(block)

        def busiest(last: int) -> float:
            return max(-(-(it.layers - last) // (self.pp - 1)), last + head)

        last = min(range(max(1, it.layers // self.pp), 0, -1), key=busiest)
        least, more = divmod(it.layers - last, self.pp - 1)
        return [least + (rank >= self.pp - 1 - more) for rank in range(self.pp - 1)] + [last]

    def dense_parameters(self, holding: Holding) -> float:
        """Those of one rank that all replicas hold."""
        it = self.architecture
        last = it.layers - 1
        routed = it.expert_parameters() if it.is_mixture(last) else 0
        dense = float(holding.blocks * (it.block_parameters(last) - routed))
        dense += it.embedding_parameters if holding.has_embedding else 0
        if holding.has_head:
            # a tied head has a copy of the table where it is not on the embedding's rank
            dense += it.head_parameters + (0 if holding.has_embedding or not it.tied else it.vocab * it.hidden)
        return dense / self.tp

    def expert_parameters(self, holding: Holding) -> float:
        """Those of one rank that `ep` ranks share out."""
        it = self.architecture
        routed = it.expert_parameters() if it.is_mixture(it.layers - 1) else 0
        return holding.blocks * routed / (self.ep * (self.tp if self.ep == 1 else 1))

    def held_parameters(self) -> tuple[float, float]:
        """Of the rank that has most: those replicated over dp, and those of experts."""
        return max((self.dense_parameters(own), self.expert_parameters(own)) for own in self.holdings())

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
