"""Makes of a whole stage's recordings what a process does that has a part of each sequence (cp) or of the experts (ep).

No process here runs either, so there is nothing to trace. But recordings at two lengths show how each number hangs on
the sequence, and so what it is where a process has some tokens of it: what grows with their number shrinks with that,
and what grows with its square is of these tokens with all others, which only attention does. A number that does not
hang on tokens and is as large as a tensor of the experts is that tensor's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree
from transformers import PretrainedConfig

from evenflow.errors import InputError
from evenflow.models.functions import Shape, StageFunctions, evaluate, follow_products
from evenflow.models.recording import Recording
from evenflow.models.work import Call, attended, is_mixing, of_experts, routed_rows, with_keys
from evenflow.spec import DTYPE_BYTES, GRADIENT_BYTES, Dtype, Exchanged

_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_WHOLE = (1, 1)


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of a model a process has.

    Attributes:
        tp: over how many processes every layer's tensors are.
        cp: over how many processes every sequence is.
        ep: over how many the experts are.
        expert_numbers: how many numbers each tensor of the experts has before `ep` shares them out.
        key_heads: heads of keys and values of one process; 0 where the configuration does not say.
        dtype: of activations.
    """

    tp: int
    cp: int
    ep: int
    expert_numbers: frozenset[int]
    key_heads: int
    dtype: Dtype

    @property
    def is_whole(self) -> bool:
        """Whether it has all sequences and all experts."""
        return (self.cp, self.ep) == _WHOLE

    def tokens(self, seq: int) -> int:
        """Of each sequence; where they do not divide, the most."""
        return -(-seq // self.cp)


def expert_count(config: PretrainedConfig) -> int:
    """How many routed experts a block has; 0 of a model without."""
    text = config.get_text_config()
    counts = (getattr(text, name, None) for name in _COUNTS)
    return next((own for own in counts if isinstance(own, int) and own > 1), 0)


def expert_parameters(model: nn.Module, count: int) -> frozenset[str]:
    """The names of parameters that have a part for each of `count` experts: matrices, and what is beside those."""

    def names() -> Iterator[str]:
        for path, module in model.named_modules():
            own = dict(module.named_parameters(recurse=False))
            if any(it.ndim == 3 and it.shape[0] == count for it in own.values()):
                yield from (f"{path}.{name}" for name, it in own.items() if it.shape[0] == count)

    return frozenset(names() if count else ())


def check_part(name: str, config: PretrainedConfig, seq: int, cp: int, ep: int) -> None:
    """Refuse what cannot be shared out.

    Raises:
        InputError: more processes than tokens, no experts, or experts that `ep` does not divide.
    """
    if cp > seq:
        raise InputError(f"--cp {cp} cuts {seq} tokens into more parts than there are; {seq} would be the most")
    count = expert_count(config)
    if ep > 1 and (not count or count % ep):
        would = [own for own in range(1, max(count, 1) + 1) if count % own == 0] if count else [1]
        have = f"the {count} experts of {name} do not divide by it" if count else f"{name} has no experts"
        raise InputError(f"--ep {ep}: {have}; {' or '.join(map(str, would))} would do")


def check_routing(name: str, ep: int, exchanged: Sequence[Exchanged | None]) -> None:
    """Refuse experts whose tokens are not seen to be sent to them.

    Args:
        name: the model's.
        ep: over how many processes experts are shared out.
        exchanged: of the layers with experts, what they hand to others.

    Raises:
        InputError: no layer has experts, or some run all of them on all tokens, so that nothing is known of routing.
    """
    if not exchanged:
        raise InputError(f"--ep {ep}: no block of {name} has experts; --ep 1 would do")
    if not all(own is not None and own.routed_bytes for own in exchanged):
        raise InputError(
            f"--ep {ep}: blocks of {name} multiply tokens with their experts otherwise than routed row by row, so what "
            "goes from process to process is not known; --ep 1 would do"
        )


def key_value_heads(config: PretrainedConfig) -> int | None:
    """Heads of keys and values; None where the configuration does not say, or has as many as of queries."""
    text = config.get_text_config()
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return 1
    names = ("num_key_value_heads", "num_kv_heads")
    return next((own for name in names if isinstance(own := getattr(text, name, None), int)), None)


def share(stage: StageFunctions, shape: Shape, part: Part, is_block: bool) -> tuple[Recording, Exchanged]:
    """What a process does that has a part of a stage, and what it hands to those that have the rest.

    Raises:
        InputError: that does not follow from what the whole stage does.
    """
    batch, seq = shape
    whole = stage.at(shape, part.tp)
    if part.cp > 1 and is_block:
        _check_mixing(whole, part.cp)
    for length in dict.fromkeys((part.tokens(seq), -(-seq // 2), 2 * seq)):
        try:
            other = whole if length == seq else stage.at((batch, length), part.tp)
        except InputError:  # at that length
            continue
        found = None if length == seq else _between(whole, other, (shape, (batch, length)), part)
        if found is not None:
            if part.cp > 1 and is_block and not found[1].keys_bytes:
                raise InputError(
                    f"--cp {part.cp}: there is a block without attention, whose keys and values processes that share a "
                    "sequence would exchange; --cp 1 would do"
                )
            return found
    raise InputError(
        f"--cp {part.cp} --ep {part.ep}: what a part of {seq} tokens takes does not follow from what whole sequences "
        "do, as where a window or a chunk cuts some and not others; --cp 1 --ep 1 would do"
    )


def _check_mixing(whole: Recording, cp: int) -> None:
    """Tokens of one sequence meet in attention alone: whatever else mixes them would need more than keys and values."""
    mixing = next((call.name for call in whole.counted.calls[0] if is_mixing(call)), None)
    if mixing is not None:
        raise InputError(
            f"--cp {cp}: a block mixes tokens by {mixing.removeprefix('aten::')} too, and processes that share a "
            "sequence are planned to exchange keys and values alone; --cp 1 would do"
        )


def _between(
    whole: Recording, other: Recording, shapes: Sequence[Shape], part: Part
) -> tuple[Recording, Exchanged] | None:
    """What follows from two recordings; None where they are not alike."""
    (leaves, spec), (others, other_spec) = pytree.tree_flatten(whole), pytree.tree_flatten(other)
    if spec != other_spec:
        return None
    (batch, seq), tokens = shapes[0], part.tokens(shapes[0][1])
    sizes = {numbers * size for numbers in part.expert_numbers for size in (DTYPE_BYTES[part.dtype], GRADIENT_BYTES)}

    def follow(known: Sequence[Shape], values: Sequence[Any], wanted: Shape) -> Any:
        value = follow_products(known, values, wanted, keys=seq)
        is_number = isinstance(value, int) and len(set(values)) == 1
        return value // part.ep if is_number and abs(value) in sizes else value

    found = evaluate(shapes, (leaves, others), (batch, tokens), follow)
    if found is None:
        return None
    recording: Recording = pytree.tree_unflatten(found, spec)
    columns = zip(recording.counted.calls, whole.counted.calls, other.counted.calls, strict=True)
    calls = tuple(
        tuple(of_experts(with_keys(*three, keys=seq), part.ep) for three in zip(*each, strict=True)) for each in columns
    )
    recording = replace(recording, counted=replace(recording.counted, calls=calls), weight_numbers=whole.weight_numbers)
    return recording, _exchanged(calls[0], whole.counted.calls[0], other.counted.calls[0], part, batch * tokens, batch)


def _exchanged(
    calls: Sequence[Call], wholes: Sequence[Call], others: Sequence[Call], part: Part, tokens: int, batch: int
) -> Exchanged:
    """What a forward hands over: keys and values by the heads that the model has, and rows of hidden states."""
    keys = 0
    for call, whole, other in zip(calls, wholes, others, strict=True):
        for heads, shape in attended(call, whole, other, batch):
            own = min(part.key_heads or heads, heads)
            keys += prod(shape) * own // heads
    rows, width = next(filter(None, map(routed_rows, calls)), (0, 0))
    size = DTYPE_BYTES[part.dtype]
    return Exchanged(
        keys_bytes=keys * size if part.cp > 1 else 0,
        routed_bytes=tokens * width * size if part.ep > 1 else 0,
        routed_copies=-(-rows // tokens) if part.ep > 1 else 0,
    )
