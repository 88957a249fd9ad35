"""A decoder's dimensions as a value, and from them parameters and operators, without tracing it and without torch."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.spec.operators import Attention, LayerOperator, Matmul, Shards, Traffic

_BYTES = 2  # of an activation in fp16 or bf16


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture's feed-forward part.

    Attributes:
        count: routed experts.
        active: experts that a token visits.
        ffn: width of one.
        shared_ffn: width of what every token visits beside them.
        dense_layers: leading blocks with a plain feed-forward part instead.
    """

    count: int
    active: int
    ffn: int
    shared_ffn: int = 0
    dense_layers: int = 0


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): ranks and widths of its projections."""

    query_rank: int
    key_rank: int
    plain_dim: int
    rotary_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """Dimensions of a decoder-only transformer.

    Attributes:
        name: of the preset, or what a file calls it.
        source: where the dimensions come from.
        layers: decoder blocks.
        hidden: width of the hidden states.
        ffn: width of a plain feed-forward part.
        heads: of queries.
        kv_heads: of keys and values.
        head_dim: width of a head.
        vocab: rows of the embedding table.
        gated: a feed-forward part of three matrices (SwiGLU) rather than two.
        biased: linear layers and norms have biases (GPT-2 and its descendants).
        tied: the head shares the embedding's weight.
        positions: learned positions, 0 for rotary or ALiBi.
        query_norms: queries and keys are normalised by head (Qwen 3).
        window: keys that a query sees in every second block, None for all.
        experts: None for a dense model.
        latent: None for plain or grouped attention.
    """

    name: str
    source: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    gated: bool = True
    biased: bool = False
    tied: bool = False
    positions: int = 0
    query_norms: bool = False
    window: int | None = None
    experts: Experts | None = None
    latent: Latent | None = None

    def is_mixture(self, block: int) -> bool:
        """Whether a block's feed-forward part is routed."""
        return self.experts is not None and block >= self.experts.dense_layers

    def attention_matrices(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the attention part's linear layers."""
        if self.latent is None:
            query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
            return ((self.hidden, query), (self.hidden, key), (self.hidden, key), (query, self.hidden))
        it, heads = self.latent, self.heads
        return (
            (self.hidden, it.query_rank),
            (it.query_rank, heads * (it.plain_dim + it.rotary_dim)),
            (self.hidden, it.key_rank + it.rotary_dim),
            (it.key_rank, heads * (it.plain_dim + it.value_dim)),
            (heads * it.value_dim, self.hidden),
        )

    def block_parameters(self, block: int) -> int:
        """Trained parameters of one block, all experts included."""
        matrices = list(self.attention_matrices())
        total = sum(inputs * outputs for inputs, outputs in matrices)
        total += 2 * self.hidden * (2 if self.biased else 1)
        total += sum(outputs for _, outputs in matrices) if self.biased else 0
        total += 2 * self.head_dim if self.query_norms else 0
        if self.latent is not None:
            total += self.latent.query_rank + self.latent.key_rank
        return total + self._ffn_parameters(block)

    def expert_parameters(self) -> int:
        """The part of a mixture block's parameters that expert parallelism cuts."""
        return 0 if self.experts is None else self.experts.count * self._width_parameters(self.experts.ffn)

    def _ffn_parameters(self, block: int) -> int:
        if self.experts is None or not self.is_mixture(block):
            return self._width_parameters(self.ffn)
        routed = self.expert_parameters() + self.hidden * self.experts.count
        return routed + (self._width_parameters(self.experts.shared_ffn) if self.experts.shared_ffn else 0)

    def _width_parameters(self, width: int) -> int:
        biases = (width + self.hidden) if self.biased else 0
        return (3 if self.gated else 2) * self.hidden * width + biases

    @property
    def embedding_parameters(self) -> int:
        """Of the token table and of learned positions."""
        return (self.vocab + self.positions) * self.hidden

    @property
    def head_parameters(self) -> int:
        """Of the final norm, and of the head where it is not the embedding's."""
        return (0 if self.tied else self.vocab * self.hidden) + self.hidden * (2 if self.biased else 1)

    @property
    def parameters(self) -> int:
        """Of the whole model, a tied weight counted once."""
        blocks = sum(self.block_parameters(block) for block in range(self.layers))
        return self.embedding_parameters + blocks + self.head_parameters

    def block(self, block: int, micro_batch: int, seq: int, shards: Shards) -> tuple[LayerOperator, ...]:
        """Operators of one block's forward on one rank, for a microbatch of `micro_batch` x `seq` tokens."""
        tokens = micro_batch * seq // shards.cp
        window = self.window if block % 2 == 0 else None
        scores, values = self.head_dim, self.head_dim
        if self.latent is not None:
            scores, values = self.latent.plain_dim + self.latent.rotary_dim, self.latent.value_dim
        heads = max(1, self.heads // shards.tp)
        found: list[LayerOperator] = [
            Attention(micro_batch, heads, seq // shards.cp, seq, scores, values, window),
            Traffic(_BYTES * tokens * self.hidden * 10),  # two norms and two residuals, each read and written
        ]
        for index, (inputs, outputs) in enumerate(self.attention_matrices()):
            is_cut_by_input = index == len(self.attention_matrices()) - 1
            found.append(_cut(tokens, inputs, outputs, shards.tp, is_cut_by_input))
        return tuple(found) + self._feed_forward(block, tokens, shards)

    def _feed_forward(self, block: int, tokens: int, shards: Shards) -> tuple[LayerOperator, ...]:
        if self.experts is None or not self.is_mixture(block):
            return self._width(tokens, self.ffn, shards.tp, 1)
        it = self.experts
        held = max(1, it.count // shards.ep)
        routed = tokens * it.active  # each rank gets as many as it sends, where the router is balanced
        found = self._width(max(1, routed // held), it.ffn, shards.tp, held)
        found += (Matmul(tokens, it.count, self.hidden), Traffic(_BYTES * routed * self.hidden * 4))
        return found + (self._width(tokens, it.shared_ffn, shards.tp, 1) if it.shared_ffn else ())

    def _width(self, tokens: int, width: int, tp: int, count: int) -> tuple[LayerOperator, ...]:
        inner = max(1, width // tp)
        ups = 2 if self.gated else 1
        return (
            Matmul(tokens, inner, self.hidden, ups * count),
            Matmul(tokens, self.hidden, inner, count),
            Traffic(_BYTES * tokens * inner * count * (ups + 1)),
        )

    def head(self, micro_batch: int, seq: int, shards: Shards) -> tuple[LayerOperator, ...]:
        """Operators of norm, head and loss on one rank: logits are read and written in four bytes."""
        tokens, width = micro_batch * seq // shards.cp, self.vocab // shards.tp
        return (Matmul(tokens, width, self.hidden), Traffic(tokens * width * 16))


def _cut(tokens: int, inputs: int, outputs: int, tp: int, is_cut_by_input: bool) -> Matmul:
    if is_cut_by_input:
        return Matmul(tokens, outputs, max(1, inputs // tp))
    return Matmul(tokens, max(1, outputs // tp), inputs)
