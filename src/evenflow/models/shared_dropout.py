"""Dropout of a stage that is shared out over tp, as one process draws it: the whole mask everywhere, of it a part.

Every process of a stage has the same generators (`models.dropout`), so what is drawn over whole tensors is the same on
all of them. Where a tensor is this process's part, attention over its own heads for one, the mask of the whole tensor
is drawn and this process's part of it is taken: the mask is the one that a single process has, and the generators stay
alike for what is drawn next.

Which draws are over parts is found and not guessed. The stage's forward is run on tensors without memory, whole and
shared out, and the two are compared draw by draw: a dimension in which they differ is the one that is cut. What cannot
be read off so is refused. A shape does not say which part of a dimension it is; that it is this process's place in
order, and that nothing else draws over parts, is proved by the check of a small copy (`execute.check_shares`).

On the processor a mask is drawn by its shape alone, so losses are those of one process. On GPUs (where this has not
been run) `functional.dropout` draws by shape too, but fused attention draws inside its kernel, in an order that no part
of a mask can follow. There attention is computed in steps, with scores of seq x seq, and drops out with the same
probability and alike over all processes, but not as one process does; nor does the rest of its layer after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig

from evenflow.errors import InputError, first_line
from evenflow.models.absent import allocate
from evenflow.models.anatomy import build_skeleton, dissect, hidden_width
from evenflow.models.cut import Cut
from evenflow.models.dropout import dropouts
from evenflow.models.imagined import imagined
from evenflow.models.stage import Stage
from evenflow.runtime import TensorGroup

_SHAPE = (2, 16)  # batch and seq of the forwards that are compared


@dataclass(frozen=True, slots=True)
class _Draw:
    """One draw of a module's forward.

    Attributes:
        kind: the function that draws.
        shape: of the mask.
        probability: with which elements are dropped.
    """

    kind: str
    shape: tuple[int, ...]
    probability: float

    def __str__(self) -> str:
        return f"{self.kind} of {' x '.join(map(str, self.shape))}"


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one draw is shared out: along `dim` a process has `part` of `whole`; all of it where `dim` is None."""

    kind: str
    dim: int | None = None
    part: int = 0
    whole: int = 0


_Log = list[tuple[str, list[_Draw]]]  # each forward in order: its module's path, and what it drew itself


def share_draws(stage: Stage, group: TensorGroup, share: Callable[[Stage], None]) -> None:
    """Have a stage that is shared out by `group` drop out as the whole one does.

    Args:
        stage: the stage; nothing of it is to run again in its backward yet, since what is drawn has to be drawn again.
        group: those that share it out.
        share: shares out another stage of the same model and layers and cuts its parameters.

    Raises:
        InputError: it draws over parts in a way that cannot be told: where, and what differs.
    """
    rules = _find_rules(stage.model.config, stage.layers, group.size, share)
    if all(rule.dim is None for own in rules.values() for rule in own):
        return
    parts = _PartsOfMasks(group)
    for path, own in rules.items():
        module = stage.model.get_submodule(path)
        module.forward = partial(_drawing, module, module.forward, parts, path, own)


def _drawing(
    module: nn.Module,
    forward: Callable[..., Any],
    parts: _PartsOfMasks,
    path: str,
    rules: Sequence[_Rule],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run a module's forward; what it draws itself are parts of whole masks."""
    with parts.of(path, rules) if module.training else nullcontext():
        return forward(*args, **kwargs)


def _find_rules(
    config: PretrainedConfig, layers: Sequence[int], size: int, share: Callable[[Stage], None]
) -> dict[str, tuple[_Rule, ...]]:
    """How the draws of each module that draws are shared out, by its path."""
    try:
        whole = _draws(config, layers, None)
    except Exception as error:  # any model may do what cannot be traced
        raise _refusal(config, size, f"what it draws cannot be traced ({first_line(error)})") from None
    try:
        shared = _draws(config, layers, share)
    except Exception as error:
        raise InputError(
            f"{config.model_type} cannot be shared out over tp: with a part of its tensors its code fails "
            f"({first_line(error)}); --tp 1 would do"
        ) from None
    if [path for path, _ in whole] != [path for path, _ in shared]:
        raise _refusal(config, size, "its modules draw in another order when they have parts")
    rules: dict[str, tuple[_Rule, ...]] = {}
    for (path, expected), (_, own) in zip(whole, shared, strict=True):
        if len(expected) != len(own):
            raise _refusal(config, size, f"{path} draws {len(expected)} times as a whole and {len(own)} times on parts")
        found = tuple(_rule(config, size, path, *both) for both in zip(expected, own, strict=True))
        if rules.setdefault(path, found) != found:
            raise _refusal(config, size, f"{path} runs several times, and draws over other parts each time")
    return rules


def _rule(config: PretrainedConfig, size: int, path: str, whole: _Draw, own: _Draw) -> _Rule:
    if whole.shape == own.shape and whole.kind == own.kind:
        return _Rule(own.kind)
    differing = [dim for dim, (one, other) in enumerate(zip(whole.shape, own.shape, strict=False)) if one != other]
    fits = len(whole.shape) == len(own.shape) and len(differing) == 1 and whole.kind == own.kind
    if not fits or whole.shape[differing[0]] != size * own.shape[differing[0]]:
        raise _refusal(config, size, f"in {path} {whole} becomes {own}")
    dim = differing[0]
    return _Rule(own.kind, dim, own.shape[dim], whole.shape[dim])


def _refusal(config: PretrainedConfig, size: int, why: str) -> InputError:
    dropping = [f"{name} = 0.0" for name, value in dropouts(config).items() if value > 0]
    would = f"{' and '.join(dropping)} in its config, or --tp 1, would do" if dropping else "--tp 1 would do"
    return InputError(
        f"{config.model_type} drops out, which would not be the same over --tp {size} as on one process: {why}; {would}"
    )


@torch.no_grad()
def _draws(config: PretrainedConfig, layers: Sequence[int], change: Callable[[Stage], None] | None) -> _Log:
    """What a stage's forward draws, on tensors without memory; `change` is done to it first."""
    skeleton = build_skeleton(config)
    stage = Stage(skeleton, dissect(skeleton), layers).train()
    if change is not None:
        change(stage)
    notes = _Notes()
    for path, module in stage.model.named_modules():
        module.register_forward_pre_hook(partial(notes.enter, path))
        module.register_forward_hook(notes.leave)
    with imagined():
        allocate(stage)
        ids = torch.zeros(_SHAPE, dtype=torch.long)
        hidden = torch.zeros((*_SHAPE, hidden_width(config, stage.anatomy)))
        with notes:
            stage(ids if stage.is_first else hidden, ids)
    return [(path, drawn) for path, drawn in notes.log if drawn]


class _Notes(TorchFunctionMode):
    """Within, every draw is noted under the innermost module whose forward runs."""

    def __init__(self) -> None:
        super().__init__()
        self.log: _Log = []
        self._inside: list[list[_Draw]] = []

    def enter(self, path: str, *_: Any) -> None:
        """The forward of the module at `path` begins."""
        drawn: list[_Draw] = []
        self.log.append((path, drawn))
        self._inside.append(drawn)

    def leave(self, *_: Any) -> None:
        """The innermost forward ends."""
        self._inside.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a draw; do as ever."""
        draw = _read(func, args, kwargs or {})
        if draw is not None and self._inside:
            self._inside[-1].append(draw)
        return func(*args, **(kwargs or {}))


class _PartsOfMasks(TorchFunctionMode):
    """Within a module's forward, its draws over parts take this process's part of the whole mask.

    Args:
        group: those that share the stage out.
    """

    def __init__(self, group: TensorGroup) -> None:
        super().__init__()
        self._group = group
        self._inside: list[tuple[str, Iterator[_Rule]]] = []

    @contextmanager
    def of(self, path: str, rules: Sequence[_Rule]) -> Iterator[None]:
        """Within, draws are those of the module at `path`."""
        self._inside.append((path, iter(rules)))
        try:
            with self if len(self._inside) == 1 else nullcontext():
                yield
        finally:
            self._inside.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Share a draw out; do all else as ever.

        Raises:
            InputError: it is not the draw that was found there.
        """
        kwargs = kwargs or {}
        draw = _read(func, args, kwargs)
        if draw is None:
            return func(*args, **kwargs)
        path, rules = self._inside[-1]
        rule = next(rules, None)
        if rule is None or rule.kind != draw.kind or (rule.dim is not None and draw.shape[rule.dim] != rule.part):
            raise InputError(
                f"dropout in {path} cannot be shared out over --tp {self._group.size}: {draw} is not what a forward "
                f"of {' x '.join(map(str, _SHAPE))} tokens drew there; --tp 1, or no dropout, would do"
            )
        if rule.dim is None:
            return func(*args, **kwargs)
        whole = (*draw.shape[: rule.dim], rule.whole, *draw.shape[rule.dim + 1 :])
        cut = Cut(whole, rule.dim, 1, self._group.size, self._group.index)
        return _DOERS[draw.kind](lambda like: cut.take(_mask(whole, draw.probability, like)), *args, **kwargs)


def _mask(shape: Sequence[int], probability: float, like: Tensor) -> Tensor:
    """What a tensor of this shape is multiplied by when it drops out: zeros, and 1 / (1 - probability)."""
    if like.device.type == "cpu":  # torch's own lines for a processor (aten/src/ATen/native/Dropout.cpp)
        return like.new_empty(shape).bernoulli_(1 - probability).div_(1 - probability)
    return functional.dropout(like.new_ones(shape), probability)


def _read(func: Any, args: Any, kwargs: Any) -> _Draw | None:
    """The draw that a call makes; None where it makes none."""
    if func is functional.dropout:
        return _read_dropout(*args, **kwargs)
    if func is functional.scaled_dot_product_attention:
        return _read_attention(*args, **kwargs)
    return None


def _read_dropout(input: Tensor, *, p: float, training: bool, **_: Any) -> _Draw | None:
    """Of `functional.dropout`, which hands its settings on by name."""
    return _Draw("dropout", tuple(input.shape), p) if training and 0 < p < 1 else None


def _read_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,  # noqa: ARG001 - torch's own signature, whose arguments come by place or by name
    attn_mask: Tensor | None = None,  # noqa: ARG001 - as above
    dropout_p: float = 0.0,
    **_: Any,
) -> _Draw | None:
    """Of `functional.scaled_dot_product_attention`: what it drops are scores."""
    shape = (*query.shape[:-1], key.shape[-2])
    return _Draw("attention", shape, dropout_p) if 0 < dropout_p < 1 else None


def _drop(mask_like: Callable[[Tensor], Tensor], input: Tensor, *, inplace: bool, **_: Any) -> Tensor:
    """`functional.dropout` with a mask."""
    mask = mask_like(input)
    return input.mul_(mask) if inplace else input * mask


def _attend(
    mask_like: Callable[[Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001 - it is in the mask
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`functional.scaled_dot_product_attention` with a mask of its softmax, in the steps of torch's own.

    Those are what torch takes on the processor where it drops out (`_scaled_dot_product_attention_math`). Queries are
    [..., heads, queries, width], and the mask is [..., heads, queries, keys].
    """
    given = query.dtype
    if given in (torch.float16, torch.bfloat16):  # as torch does, whose sums would be too coarse
        query, key, value = query.float(), key.float(), value.float()
    if enable_gqa:
        key, value = (own.repeat_interleave(query.shape[-3] // own.shape[-3], -3) for own in (key, value))
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    root = (query.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
    scores = (query * root) @ (key * root).transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(attn_mask.logical_not(), float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    shares = scores.softmax(-1) if attn_mask is None else torch._safe_softmax(scores, -1)  # no NaN where none is seen
    attended: Tensor = (shares * mask_like(shares)) @ value
    return attended.to(given)


_DOERS: dict[str, Callable[..., Tensor]] = {"dropout": _drop, "attention": _attend}
