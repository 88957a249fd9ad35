"""Records which operators a pass runs, with their shapes: what a device's seconds are worked out from.

Products and attention are kept as they are. Whatever else runs is bound by memory, and kept as the bytes that it moves.
A recorder notes shapes and sizes alone, and operators are read off those: so they can be read off at other shapes too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evenflow.spec import Attention, LayerOperator, Matmul, Traffic, Work

_Shapes = Sequence[int]  # of one tensor


def _product(left: _Shapes, right: _Shapes) -> list[LayerOperator]:
    return [Matmul(m=left[-2], n=right[-1], k=left[-1], count=left[0] if len(left) == 3 else 1)]


def _attention(query: _Shapes, key: _Shapes, value: _Shapes) -> list[LayerOperator]:
    return [Attention(query[0], query[1], query[-2], key[-2], query[-1], value[-1])]


def _experts(rows: _Shapes, weight: _Shapes) -> list[LayerOperator]:
    """Rows are shared out over the experts evenly, as costs take them to be."""
    return [Matmul(m=-(-rows[0] // weight[0]), n=weight[2], k=weight[1], count=weight[0])]


def _experts_backward(rows: _Shapes, weight: _Shapes) -> list[LayerOperator]:
    each = -(-rows[0] // weight[0])
    return [
        Matmul(m=each, n=weight[1], k=weight[2], count=weight[0]),
        Matmul(m=weight[1], n=weight[2], k=each, count=weight[0]),
    ]


# By the operator's name without its overload: what it computes, given its tensors' shapes.
_COMPUTES: Mapping[str, Callable[..., list[LayerOperator]]] = {
    "aten::mm": lambda left, right, *_: _product(left, right),
    "aten::bmm": lambda left, right, *_: _product(left, right),
    "aten::addmm": lambda _, left, right, *__: _product(left, right),
    "aten::addmm_": lambda _, left, right, *__: _product(left, right),
    "aten::baddbmm": lambda _, left, right, *__: _product(left, right),
    "aten::_scaled_dot_product_flash_attention_for_cpu": lambda query, key, value, *_: _attention(query, key, value),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": (
        lambda _, query, key, value, *__: _attention(query, key, value)
    ),
    "transformers::grouped_mm_fallback": lambda rows, weight, *_: _experts(rows, weight),
    "transformers::grouped_mm_fallback_backward": lambda rows, weight, *_: _experts_backward(rows, weight),
}
# Where these have keys among their tensors; values follow.
_KEYS = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": 1,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": 2,
}
_PRODUCTS = ("aten::bmm", "aten::baddbmm")  # of attention that is no kernel of its own, among others
_EXPERTS = ("transformers::grouped_mm_fallback", "transformers::grouped_mm_fallback_backward")
_JOINS = ("aten::cat", "aten::stack")
_MIXING = ("aten::convolution", "aten::conv")
# These start nothing on a device, beside views.
_NOTHING = ("prim::", "aten::_unsafe_view", "aten::empty", "aten::new_empty")
# These touch some rows of a tensor, however large it is, and move as many bytes as their other tensors have.
_ROWS = ("aten::embedding", "aten::index", "aten::gather", "aten::scatter", "aten::slice_scatter")


@dataclass(frozen=True, slots=True)
class Call:
    """One operator that reaches a device, as it was called.

    Attributes:
        name: without its overload.
        shapes: of the tensors that it was given, where it is a product or attention.
        sizes: bytes of each tensor that it was given or made, where it is neither; of a list that it joins, in sum.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...] = ()
    sizes: tuple[int, ...] = ()


class WorkRecorder(TorchDispatchMode):
    """Within, every operator that reaches a device is noted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # no types
        self._noted: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run it and note it; what only looks at a tensor in another way starts nothing."""
        result = func(*args, **(kwargs or {}))
        if not _is_view(func) and not func._schema.name.startswith(_NOTHING):
            name = func._schema.name
            if name in _COMPUTES:
                self._noted.append(
                    Call(name, shapes=tuple(tuple(own.shape) for own in args if isinstance(own, Tensor)))
                )
            else:
                self._noted.append(Call(name, sizes=tuple(_sizes(name, args, kwargs or {}, result))))
        return result

    @property
    def calls(self) -> tuple[Call, ...]:
        """One after another."""
        return tuple(self._noted)


def with_keys(call: Call, whole: Call, other: Call, keys: int) -> Call:
    """A call on some tokens of each sequence, where it is attention with the keys and values of all.

    Args:
        call: as if there were no more tokens.
        whole: the same call at a length.
        other: and at another: what differs between the two hangs on tokens.
        keys: how many there are.
    """
    shapes = [list(shape) for shape in call.shapes]
    if call.name in _KEYS:
        for place in (_KEYS[call.name], _KEYS[call.name] + 1):
            shapes[place][-2] = keys
    elif _is_attention(whole, other):
        left, right = shapes[-2:]
        if whole.shapes[-1][-1] != other.shapes[-1][-1]:
            right[-1] = keys
        else:
            left[-1] = right[-2] = keys
    else:
        return call
    return replace(call, shapes=tuple(map(tuple, shapes)))


def attended(call: Call, whole: Call, other: Call, batch: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Keys and values that a call of a forward has among its tensors: their heads, and their shape.

    Args:
        call: as `with_keys` made it.
        whole: at a length, and `other` at another.
        other: as said.
        batch: sequences.
    """
    if call.name in _KEYS:
        place = _KEYS[call.name]
        yield from ((shape[1], shape) for shape in call.shapes[place : place + 2])
    elif _is_attention(whole, other):
        right = call.shapes[-1]
        yield max(right[0] // batch, 1), right


def of_experts(call: Call, ep: int) -> Call:
    """A call with the experts that one of `ep` processes has, each of which gets as many rows as it sends."""
    if ep == 1 or call.name not in _EXPERTS:
        return call
    places = [place for place, shape in enumerate(call.shapes) if len(shape) == 3]
    return replace(
        call,
        shapes=tuple(
            (shape[0] // ep, *shape[1:]) if place in places else shape for place, shape in enumerate(call.shapes)
        ),
    )


def routed_rows(call: Call) -> tuple[int, int] | None:
    """Rows of hidden states that a call multiplies with experts, and their width; None of another call."""
    return (call.shapes[0][0], call.shapes[0][1]) if call.name == _EXPERTS[0] else None


def is_mixing(call: Call) -> bool:
    """Whether a call mixes tokens of a sequence otherwise than attention does."""
    return call.name.startswith(_MIXING)


def _is_attention(whole: Call, other: Call) -> bool:
    """Whether two of a product's three lengths hang on tokens: queries and keys, one of them perhaps summed over."""
    if whole.name not in _PRODUCTS or len(whole.shapes[-2]) != 3:
        return False
    lengths = ((*own.shapes[-2][-2:], own.shapes[-1][-1]) for own in (whole, other))
    moving = [one for one, two in zip(*lengths, strict=True) if one != two]
    return len(moving) == 2


def operators_of(calls: Iterable[Call]) -> tuple[LayerOperator, ...]:
    """What was called, as a device sees it."""
    return tuple(operator for call in calls for operator in _operators(call))


def left_of(operators: Iterable[LayerOperator], others: Iterable[LayerOperator]) -> tuple[LayerOperator, ...]:
    """What one stage ran and another did not."""
    return tuple((Counter(operators) - Counter(others)).elements())


def work_of(operators: Sequence[LayerOperator]) -> Work:
    """What was recorded, with all that moves bytes added up."""
    moved = sum(own.moved_bytes for own in operators if isinstance(own, Traffic))
    computes = [own for own in operators if not isinstance(own, Traffic)]
    return Work((*computes, *([Traffic(moved)] if moved else [])), len(operators))


def _operators(call: Call) -> Iterator[LayerOperator]:
    if call.name in _COMPUTES:
        yield from _COMPUTES[call.name](*call.shapes)
        return
    sizes: Sequence[int] = call.sizes
    if call.name.startswith(_ROWS) and not call.name.endswith("_backward") and sizes:
        most = max(sizes)
        sizes = 2 * ([size for size in sizes if size < most] or [most])
    if sum(sizes):
        yield Traffic(sum(sizes))


def _sizes(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Iterator[int]:
    """Bytes of each tensor; of those that are joined together, of which there may be one for each process."""
    if name in _JOINS:
        yield sum(own.nbytes for own in args[0])
        args = args[1:]
    yield from (own.nbytes for own in tree_leaves((args, kwargs, result)) if isinstance(own, Tensor))


def _is_view(func: Any) -> bool:
    return any(own.alias_info is not None and not own.alias_info.is_write for own in func._schema.returns)
