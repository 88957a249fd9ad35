"""Makes a stage's recordings a function of microbatch and sequence, so that it is not traced again for each.

Every number of a recording is of one tensor or one call, and so a constant times a product of the microbatch's
dimensions. Recordings at two shapes tell which product; a number that is none of them, or another order of calls, and
the stage is traced at that shape. What is worked out equals what a trace there would have, to the byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from torch.utils import _pytree as pytree
from transformers import PretrainedConfig

from evenflow.models.anatomy import ConfigKey
from evenflow.models.recording import Counted, Flops, Recording, Rerun, Run, Runs
from evenflow.models.trace import record_layers
from evenflow.models.work import Call
from evenflow.spec import Combined, Dtype

for _own in (Call, Combined, Counted, Flops, Recording, Rerun, Run, Runs):
    pytree.register_dataclass(_own)

Shape = tuple[int, int]  # sequences of a microbatch, tokens of each

# What a number may be proportional to: sequences to a power, times tokens (and how many more) to a power. Labels are
# shifted by a token, and in passing one longer.
_PRODUCTS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 1, 1), (0, 2, 0), (1, 2, 0))
# Settings by which models cut sequences: from there on, what is run at a longer one may be something else.
_CUTS = re.compile("window|chunk|block|local_att|stride|segment|bucket|compress|kernel|hash|index_|original_max")


class StageFunctions:
    """One stage of one model, over one tp and in one type: neither of those is something to work out from another."""

    def __init__(self, key: ConfigKey, layers: tuple[int, ...], tp: int, dtype: Dtype) -> None:
        self._key, self._layers, self._tp, self._dtype = key, layers, tp, dtype
        self._known: dict[Shape, tuple[list[Any], pytree.TreeSpec]] = {}
        self._cut = min(_cuts(key.config), default=None)

    def at(self, shape: Shape) -> Recording:
        """What it does at a shape: known, worked out, or traced.

        Raises:
            InputError: the model cannot be traced at this shape.
        """
        found = self._work_out(shape)
        if found is None:
            found = record_layers(self._key.config, self._layers, *shape, self._tp, self._dtype)
            self._known[shape] = pytree.tree_flatten(found)
        return found

    def _work_out(self, wanted: Shape) -> Recording | None:
        if wanted in self._known:
            return _together(*self._known[wanted])
        for shapes in self._alike(wanted):
            leaves = evaluate(shapes, [self._known[shape][0] for shape in shapes], wanted)
            if leaves is not None:
                return _together(leaves, self._known[shapes[0]][1])
        return None

    def _alike(self, wanted: Shape) -> Iterator[list[Shape]]:
        """Shapes whose recordings have the same order of calls and may tell of another: of its length, then of all.

        A microbatch or a sequence of one may be run in another way, so what is smaller than all of them is not told.
        """
        batch, seq = wanted
        same = [shape for shape in self._known if shape[1] == seq]
        short = [shape for shape in self._known if self._cut is None or max(seq, shape[1]) < self._cut]
        for candidates in (same, short):
            rest = candidates
            while rest:
                spec = self._known[rest[0]][1]
                group = [shape for shape in rest if self._known[shape][1] == spec]
                rest = [shape for shape in rest if shape not in group]
                if len(group) > 1 and min(own for own, _ in group) <= batch and min(own for _, own in group) <= seq:
                    yield group


@lru_cache(maxsize=64)
def stage_functions(key: ConfigKey, layers: tuple[int, ...], tp: int, dtype: Dtype) -> StageFunctions:
    """Those of a stage, with all that is known of it in this process."""
    return StageFunctions(key, layers, tp, dtype)


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
