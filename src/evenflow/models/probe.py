"""One forward of the whole model on fake tensors, to see how its code strings its blocks together.

What a config does not say, the model's own run does: in which order blocks are called, what they are handed and what
they return; and the graph that autograd builds says which weights are used where. A model can be cut where all that
leads from earlier weights to later results leads through the hidden states.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

_BATCH, _SEQ = 3, 7  # told apart from each other, and from the few that models have of anything


@dataclass(frozen=True, slots=True)
class Returned:
    """What a block returns: the hidden states, alone or among others.

    Attributes:
        spec: its structure.
        leaves: what is in it, with None for each tensor.
        tensors: the places of tensors among the leaves; the first is that of the hidden states.
    """

    spec: TreeSpec
    leaves: tuple[Any, ...]
    tensors: tuple[int, ...]

    def fill(self, hidden: Tensor) -> Any:
        """The same structure round other hidden states; other tensors are zeros of no dimensions."""
        leaves = list(self.leaves)
        for place in self.tensors:
            leaves[place] = hidden.new_zeros(())
        leaves[self.tensors[0]] = hidden
        return tree_unflatten(leaves, self.spec)

    def hidden(self, output: Any) -> Tensor:
        """The hidden states in what a block returned."""
        hidden: Tensor = tree_flatten(output)[0][self.tensors[0]]
        return hidden


ALONE = Returned(tree_flatten(0)[1], (None,), (0,))


@dataclass(frozen=True, slots=True)
class Seen:
    """What a forward of the whole model showed.

    Attributes:
        order: the blocks in the order in which they were called.
        shapes: the shape of the hidden states that entered each, for a microbatch of `tokens`.
        returned: what each returned.
        beside: what each was handed beside the hidden states that carries a gradient, by name.
        passed_on: what each was handed that a block before it returned, and used without a gradient, by name.
        used: by which layers each parameter was used on the way to the loss: 0 before the blocks, then the blocks
            from 1, then what is after them. What is reached round the hidden states counts for who reached it.
        calls: for each module outside the blocks, whether it ran before them, after them, or both.
        writes_embeddings: whether what the token embedding returned was changed in place.
        calls_loss: whether the loss is that of the model's `loss_function`.
        plain_loss: whether the loss is transformers' own of a causal LM, of the logits just as the head made them.
        tokens: (batch, seq) of the forward.
        attentions: for each block, the paths in it of the smallest modules with parameters in which tokens attend to
            each other; none where the block does so itself.
    """

    order: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    returned: tuple[Returned, ...]
    beside: tuple[tuple[str, ...], ...]
    passed_on: tuple[tuple[str, ...], ...]
    used: dict[str, tuple[int, ...]]
    calls: dict[str, frozenset[str]]
    writes_embeddings: bool
    calls_loss: bool
    plain_loss: bool
    tokens: tuple[int, int]
    attentions: tuple[tuple[str, ...], ...]


def probe(model: PreTrainedModel, blocks: Sequence[nn.Module]) -> Seen:
    """Run `model`, whose tensors must be fake, on one small microbatch."""
    watch = _Watch(model, blocks)
    try:
        ids = torch.zeros(_BATCH, _SEQ, dtype=torch.long)
        with _Uses(watch), watch.loss():
            loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    finally:
        watch.end()
    return watch.result(loss)


class _Uses(TorchFunctionMode):
    """Notes which of the tensors that a block was handed it computes with, and where in it tokens attend."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _attends(func, result):
            self._watch.note_attention()
        if self._watch.handed and any(isinstance(leaf, Tensor) for leaf in tree_flatten(result)[0]):
            for leaf in tree_flatten((args, kwargs))[0]:
                self._watch.note_use(leaf)
        return result


@dataclass(slots=True)
class _Watch:
    """Hooks on the blocks and on all modules beside them."""

    model: PreTrainedModel
    blocks: Sequence[nn.Module]
    order: list[int] = field(default_factory=list)
    entries: list[Any] = field(default_factory=list)  # the graph's node where hidden states enter each block
    exit: Any = None
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    returned: list[Returned] = field(default_factory=list)
    beside: list[tuple[str, ...]] = field(default_factory=list)
    passed_on: list[tuple[str, ...]] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)  # by blocks, beside hidden states
    handed: dict[int, tuple[str, ...]] = field(default_factory=dict)  # of those, by which names the block has them
    calls: dict[str, set[str]] = field(default_factory=dict)
    embedded: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)  # as the head made them
    calls_loss: bool = False
    plain_loss: bool = False
    inside: list[tuple[int, str, nn.Module]] = field(default_factory=list)  # modules of blocks that are at work
    attentions: dict[int, dict[str, None]] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        inside = {id(module) for block in self.blocks for module in block.modules()}
        for name, module in self.model.named_modules():
            if id(module) not in inside:
                self.handles.append(module.register_forward_pre_hook(self._caller(name)))
        embedding = self.model.get_input_embeddings()
        self.handles.append(embedding.register_forward_hook(lambda *call: self.embedded.append(call[-1])))
        head = self.model.get_output_embeddings()
        self.handles.append(head.register_forward_hook(lambda *call: self.logits.append(call[-1])))
        for number, block in enumerate(self.blocks):
            self.handles.append(block.register_forward_pre_hook(self._enterer(number), with_kwargs=True))
            self.handles.append(block.register_forward_hook(self._leave))
            for name, module in block.named_modules():
                self.handles.append(module.register_forward_pre_hook(self._beginner(number, name)))
                self.handles.append(module.register_forward_hook(self._end))

    def _caller(self, name: str) -> Any:
        def note(*_: object) -> None:
            self.calls.setdefault(name, set()).add("after" if self.returned else "before")

        return note

    def _beginner(self, number: int, name: str) -> Any:
        def begin(module: nn.Module, *_: object) -> None:
            self.inside.append((number, name, module))

        return begin

    def _end(self, *_: object) -> None:
        self.inside.pop()

    def note_attention(self) -> None:
        """Tokens attend to each other where this is called: in the smallest module that has parameters."""
        for number, name, module in reversed(self.inside):
            if any(True for _ in module.parameters()):
                self.attentions.setdefault(number, {})[name] = None
                return

    def _enterer(self, number: int) -> Any:
        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = hidden_of(args, kwargs)
            marked = hidden.view_as(hidden)
            self.order.append(number)
            self.shapes.append(tuple(hidden.shape))
            self.entries.append(marked.grad_fn)
            self.beside.append(_names(block, args, kwargs, lambda leaf: leaf.requires_grad and leaf is not hidden))
            made = [id(tensor) for tensor in self.made]
            self.handed = {own: _names(block, args, kwargs, partial(_is, own)) for own in made}
            self.passed_on.append(())
            return with_hidden(args, kwargs, marked)

        return enter

    def _leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        del block, args
        self.handed = {}
        leaves, spec = tree_flatten(output)
        shape = self.shapes[-1]
        tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors.sort(key=lambda place: tuple(leaves[place].shape) != shape)
        hidden = leaves[tensors[0]]
        self.made += [leaves[place] for place in tensors[1:] if not leaves[place].requires_grad]
        leaves[tensors[0]] = marked = hidden.view_as(hidden)
        self.exit = marked.grad_fn
        plain = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        self.returned.append(Returned(spec, plain, tuple(tensors)))
        return tree_unflatten(leaves, spec)

    @contextmanager
    def loss(self) -> Iterator[None]:
        """Within, what the loss is made from is noted."""
        loss_function = self.model.loss_function

        def note(logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.calls_loss = True
            self.plain_loss = loss_function is ForCausalLMLoss and any(logits is own for own in self.logits)
            return loss_function(logits, labels, *args, **kwargs)

        self.model.loss_function = note
        try:
            yield
        finally:
            self.model.loss_function = loss_function

    def note_use(self, leaf: Any) -> None:
        names = self.handed.get(id(leaf), ())
        self.passed_on[-1] = tuple(dict.fromkeys((*self.passed_on[-1], *names)))

    def end(self) -> None:
        for handle in self.handles:
            handle.remove()

    def result(self, loss: Tensor) -> Seen:
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        used: dict[str, set[int]] = {}
        # From the end to the start: what leads to the loss without passing an entry belongs to the layer after it.
        gates = [*self.entries, self.exit]
        start = loss.grad_fn
        for layer in range(len(gates), -1, -1):
            stop = gates[layer - 1] if layer else None
            for parameter in _reached(start, stop):
                used.setdefault(names[id(parameter)], set()).add(layer)
            start = stop
        return Seen(
            order=tuple(self.order),
            shapes=tuple(self.shapes),
            returned=tuple(self.returned),
            beside=tuple(self.beside),
            passed_on=tuple(self.passed_on),
            used={name: tuple(sorted(layers)) for name, layers in used.items()},
            calls={name: frozenset(when) for name, when in self.calls.items()},
            writes_embeddings=any(tensor._version for tensor in self.embedded),
            calls_loss=self.calls_loss,
            plain_loss=self.plain_loss,
            tokens=(_BATCH, _SEQ),
            attentions=tuple(_proper(self.attentions.get(number, ())) for number in range(len(self.blocks))),
        )


def _attends(function: Any, result: Any) -> bool:
    """Whether tokens attend to each other by this call: PyTorch's own attention, or weights over all of a sequence."""
    name = getattr(function, "__name__", "")
    if name == "scaled_dot_product_attention":
        return True
    if "softmax" not in name or not isinstance(result, Tensor) or result.ndim < 3:
        return False
    # [batch, heads, seq, seq], or batch and heads as one; with more columns where there are sinks. A mixture's router
    # has weights over experts, [tokens, experts] or [batch, seq, experts].
    *before, queries, keys = result.shape
    return queries == _SEQ and keys >= _SEQ and before != [_BATCH]


def _proper(paths: Iterable[str]) -> tuple[str, ...]:
    """The paths, unless the block itself is among them; of two, one in the other, the outer one."""
    found = tuple(paths)
    if "" in found:
        return ()
    return tuple(own for own in found if not any(own.startswith(f"{other}.") for other in found))


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states among what a block is called with: its first argument, or the one of that name."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with other hidden states."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def _names(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], asked: Callable[[Tensor], bool]
) -> tuple[str, ...]:
    """The arguments of a call in which there is a tensor of the kind that is asked for."""
    names = list(inspect.signature(type(block).forward).parameters)[1:]
    called = {**dict(zip(names, args, strict=False)), **kwargs}
    return tuple(
        name
        for name, value in called.items()
        if any(isinstance(leaf, Tensor) and asked(leaf) for leaf in tree_flatten(value)[0])
    )


def _is(own: int, leaf: Tensor) -> bool:
    return id(leaf) == own


def _reached(start: Any, stop: Any) -> list[Tensor]:
    """The parameters whose gradients are made from that of `start` without passing through `stop`."""
    found: list[Tensor] = []
    waiting, known = [start], {stop}
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        known.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting.extend(parent for parent, _ in node.next_functions)
    return found
