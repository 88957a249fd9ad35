"""Makes a stage's recordings a function of microbatch, sequence and tp, so that it is not traced again for each.

Every number of a recording is of one tensor or one call, and so a constant times a product of the microbatch's
dimensions. Recordings at two shapes tell which product; a number that is none of them, or another order of calls, and
the stage is traced at that shape. Over tp a number stays or is cut: two degrees tell which. What is worked out equals
what a trace there would have, to the byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from torch.utils import _pytree as pytree
from transformers import PretrainedConfig

from evenflow.models.anatomy import ConfigKey, build_skeleton
from evenflow.models.recording import Counted, Flops, Recording, Rerun, Run, Runs
from evenflow.models.tp_plan import find_cuts
from evenflow.models.trace import record_layers
from evenflow.models.work import Call
from evenflow.spec import Combined, Dtype

for _own in (Call, Combined, Counted, Flops, Recording, Rerun, Run, Runs):
    pytree.register_dataclass(_own)

Shape = tuple[int, int]  # sequences of a microbatch, tokens of each
_Flat = tuple[list[Any], pytree.TreeSpec]  # a recording's numbers and words, and their order

# What a number may be proportional to: sequences to a power, times tokens (and how many more) to a power. Labels are
# shifted by a token, and in passing one longer.
_PRODUCTS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 1, 1), (0, 2, 0), (1, 2, 0))
# Settings by which models cut sequences: from there on, what is run at a longer one may be something else.
_CUTS = re.compile("window|chunk|block|local_att|stride|segment|bucket|compress|kernel|hash|index_|original_max")


class StageFunctions:
    """One stage of one model in one type, which is nothing to work out from another."""

    def __init__(self, key: ConfigKey, layers: tuple[int, ...], dtype: Dtype) -> None:
        self._key, self._layers, self._dtype = key, layers, dtype
        self._known: dict[int, dict[Shape, _Flat]] = {}
        self._cuts: list[tuple[int, int]] | None = None
        self._cut = min(_cuts(key.config), default=None)

    def at(self, shape: Shape, tp: int = 1) -> Recording:
        """What one of `tp` processes that share it does at a shape: known, worked out, or traced.

        Raises:
            InputError: the model cannot be traced at this shape.
        """
        found = self._at_shape(shape, tp) or self._at_tp(shape, tp)
        if found is None:
            recording = record_layers(self._key.config, self._layers, *shape, tp, self._dtype)
            found = self._known.setdefault(tp, {})[shape] = pytree.tree_flatten(recording)
        return _together(*found)

    def _at_shape(self, wanted: Shape, tp: int) -> _Flat | None:
        """From what is known of the same tp."""
        known = self._known.get(tp, {})
        if wanted in known:
            return known[wanted]
        for shapes in self._alike(known, wanted):
            leaves = evaluate(shapes, [known[shape][0] for shape in shapes], wanted)
            if leaves is not None:
                return leaves, known[shapes[0]][1]
        return None

    def _at_tp(self, wanted: Shape, tp: int) -> _Flat | None:
        """From what is known of other degrees, of which a single process is none: it puts nothing together."""
        if tp == 1 or not self._is_even(tp):
            return None
        others: dict[int, _Flat] = {}
        for other in self._known:
            found = self._at_shape(wanted, other) if other not in (1, tp) and self._is_even(other) else None
            if found is not None:
                others[other] = found
        for _, spec in others.values():
            alike = [other for other, own in others.items() if own[1] == spec]
            if len(alike) > 1 and (max(alike) > tp or self._has_heads(tp)):
                columns = zip(*(others[other][0] for other in alike), strict=True)
                leaves = [_at_degree(alike, values, tp) for values in columns]
                return None if None in leaves else (leaves, spec)
        return None

    def _is_even(self, tp: int) -> bool:
        """Whether all of `tp` processes have parts of one size of everything that is cut."""
        if self._cuts is None:
            self._cuts = [
                (own.shape[own.dim], own.packed) for own in find_cuts(build_skeleton(self._key.config), 2).values()
            ]
        return all(length % (packed * tp) == 0 for length, packed in self._cuts)

    def _has_heads(self, tp: int) -> bool:
        """Whether each process has several heads: what one head does may be run in another way."""
        text = self._key.config.get_text_config()
        heads = [getattr(text, name, None) for name in ("num_attention_heads", "num_key_value_heads")]
        counts = [own for own in heads if isinstance(own, int)]
        return bool(counts) and min(counts) > tp

    def _alike(self, known: Mapping[Shape, _Flat], wanted: Shape) -> Iterator[list[Shape]]:
        """Shapes whose recordings have the same order of calls and may tell of another: of its length, then of all.

        A microbatch or a sequence of one may be run in another way, so what is smaller than all of them is not told.
        """
        batch, seq = wanted
        same = [shape for shape in known if shape[1] == seq]
        short = [shape for shape in known if self._cut is None or max(seq, shape[1]) < self._cut]
        for candidates in (same, short):
            rest = candidates
            while rest:
                spec = known[rest[0]][1]
                group = [shape for shape in rest if known[shape][1] == spec]
                rest = [shape for shape in rest if shape not in group]
                if len(group) > 1 and min(own for own, _ in group) <= batch and min(own for _, own in group) <= seq:
                    yield group


@lru_cache(maxsize=64)
def stage_functions(key: ConfigKey, layers: tuple[int, ...], dtype: Dtype) -> StageFunctions:
    """Those of a stage, with all that is known of it in this process."""
    return StageFunctions(key, layers, dtype)


def _at_degree(degrees: Sequence[int], values: Sequence[Any], wanted: int) -> Any:
    """One number (or word, which may not change) at another tp: the same, a part of a whole, or one of each process.

    None of any other.
    """
    if len(set(values)) == 1:
        return values[0]
    if not isinstance(values[0], int):
        return None
    wholes = {value * degree for degree, value in zip(degrees, values, strict=True)}
    each = {Fraction(value, degree) for degree, value in zip(degrees, values, strict=True)}
    answer = Fraction(wholes.pop(), wanted) if len(wholes) == 1 else each.pop() * wanted if len(each) == 1 else None
    return int(answer) if answer is not None and answer.denominator == 1 else None


def _together(leaves: list[Any], spec: pytree.TreeSpec) -> Recording:
    found: Recording = pytree.tree_unflatten(leaves, spec)
    return found


def evaluate(
    shapes: Sequence[Shape],
    known: Sequence[Sequence[Any]],
    wanted: Shape,
    follow: Callable[[Sequence[Shape], Sequence[Any], Shape], Any] | None = None,
) -> list[Any] | None:
    """Each number at another shape; None where one does not follow from those at these shapes."""
    found: dict[tuple[Any, ...], Any] = {}
    for values in zip(*known, strict=True):
        if values not in found:
            found[values] = (follow or follow_products)(shapes, values, wanted)
            if found[values] is None:
                return None
    return [found[values] for values in zip(*known, strict=True)]


def follow_products(shapes: Sequence[Shape], values: Sequence[Any], wanted: Shape, keys: int | None = None) -> Any:
    """One number (or word, which may not change) at another shape: what all products that fit it say, or None.

    Args:
        shapes: where it is known.
        values: what it is there.
        wanted: the other shape.
        keys: tokens that there are of each sequence, where a process has those of `wanted` alone: what grows with the
            square of a sequence is of each of its own tokens with each of these.
    """
    if not isinstance(values[0], int):
        return values[0] if len(set(values)) == 1 else None
    said = set()
    for powers in _PRODUCTS:
        each = {Fraction(value, _product(shape, powers)) for shape, value in zip(shapes, values, strict=True)}
        if len(each) == 1:
            said.add(each.pop() * _product(wanted, powers, keys))
    answer = said.pop() if len(said) == 1 else None
    return int(answer) if answer is not None and answer.denominator == 1 else None


def _product(shape: Shape, powers: tuple[int, int, int], keys: int | None = None) -> int:
    (batch, seq), (of_batch, of_seq, more) = shape, powers
    other = seq if keys is None else keys
    return int(batch**of_batch * (seq + more) ** min(of_seq, 1) * (other + more) ** max(of_seq - 1, 0))


def _cuts(config: PretrainedConfig) -> Iterator[int]:
    """Numbers that a configuration has under names of what cuts sequences."""

    def search(settings: Mapping[str, Any]) -> Iterator[int]:
        for name, value in settings.items():
            if isinstance(value, Mapping):
                yield from search(value)
            elif _CUTS.search(str(name)):
                each = value if isinstance(value, list | tuple) else (value,)
                yield from (own for own in each if isinstance(own, int) and own > 1)

    return search(config.to_dict())
