"""The anatomy of a Hugging Face causal LM: which of its modules belong to which layer.

    layer 0          what runs before the blocks and holds parameters: the token embedding (and what is beside it)
    layers 1 to n    the decoder blocks
    layer n + 1      what runs after them: the final norm and the head

A model names its blocks in its `base_model_pp_plan`; otherwise they are the ModuleList beside the token embedding that
has most parameters. Which layer uses a weight is read off a forward of the model (`models.probe`). What belongs to no
layer holds no parameters (rotary tables, say) and stays on every stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from evenflow.errors import InputError, first_line
from evenflow.models.absent import allocate
from evenflow.models.imagined import imagined
from evenflow.models.layout import Layout, layout_of
from evenflow.models.obstacle import find_obstacle
from evenflow.models.probe import ALONE, Returned, Seen, probe
from evenflow.runtime import TORCH_DTYPES
from evenflow.spec import DEFAULT_DTYPE, Dtype

_CONSTANT = 256  # numbers of a parameter that a constructor may set itself
_SMALL = 30_000_000  # parameters of a model that is rather run than given up


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Paths by layer, in the whole model.

    Attributes:
        layers: for each layer, the paths of its modules; a parameter that a module holds beside modules of other
            layers stands for itself.
        embedding: the path of the token embedding.
        head: the path of the output projection.
        parameters: every parameter's name in whole-model order, a tied weight once.
        tensors: every name that the whole model's checkpoint may have: parameters, tied ones too, and buffers.
        tied: other names of tied weights, with the name that `parameters` has.
        returned: what each block returns.
        layout: how hidden states lie where they enter a block.
        writes_embeddings: whether the model changes in place what its embedding returns.
        calls_loss: whether the loss is that of the model's `loss_function`.
        plain_loss: whether the loss is transformers' own of a causal LM, of the logits just as the head made them.
        obstacle: why the model cannot be split; None where it can.
        attentions: for each block, the paths of the modules in it in which tokens attend to each other.
    """

    layers: tuple[tuple[str, ...], ...]
    embedding: str
    head: str
    parameters: tuple[str, ...]
    tensors: tuple[str, ...]
    tied: Mapping[str, str]
    returned: tuple[Returned, ...]
    layout: Layout
    writes_embeddings: bool
    calls_loss: bool
    plain_loss: bool
    obstacle: str | None
    attentions: tuple[tuple[str, ...], ...]

    def name(self, layer: int) -> str:
        """A layer's name: its first module's path."""
        return self.layers[layer][0] if layer < len(self.layers) - 1 else self.head


def build_skeleton(config: PretrainedConfig, dtype: Dtype = "fp32") -> PreTrainedModel:
    """The whole model on the meta device: modules, shapes and types, no memory.

    Raises:
        InputError: the config's values do not make a model.
    """
    own = config if dtype == DEFAULT_DTYPE else deepcopy(config)  # where the type is noted
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(own, dtype=TORCH_DTYPES[dtype])
    except Exception as error:  # any class may refuse its config's values in any way
        text = first_line(error)
        raise InputError(f"the config does not make a {config.model_type} model: {text}") from None
    return model


def build_constants(config: PretrainedConfig) -> PreTrainedModel:
    """The whole model with buffers and small parameters as its constructor makes them, and no memory for others."""
    register = nn.Module.register_parameter

    def without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.numel() > _CONSTANT:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    with patch.object(nn.Module, "register_parameter", without_memory):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def dissect(model: PreTrainedModel) -> Anatomy:
    """Find a model's layers.

    Raises:
        InputError: its parts cannot be told apart; the text says which.
    """
    return _dissect(ConfigKey(model.config))


class ConfigKey:
    """A configuration, equal to others of the same values."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config
        kernels = [getattr(config, f"_{kind}_implementation", None) for kind in ("attn", "experts")]  # not in its JSON
        self._text = f"{type(config).__name__} {kernels} {config.to_json_string(use_diff=False)}"

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfigKey) and self._text == other._text


@lru_cache(maxsize=16)
def _dissect(key: ConfigKey) -> Anatomy:
    model = build_skeleton(key.config)
    name = type(model).__name__
    paths = {id(module): path for path, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise InputError(f"{name} has no input or output embeddings; it cannot be cut into layers")
    found = _blocks(model, paths[id(embedding)])
    blocks = [paths[id(block)] for block in found]
    parameters = tuple(name for name, _ in model.named_parameters())
    names = dict(model.named_parameters(remove_duplicate=False))
    first = {id(parameter): name for name, parameter in reversed(names.items())}
    tied = {name: first[id(own)] for name, own in names.items() if name != first[id(own)]}
    seen, obstacle = _probe(model, list(found)), None
    owners = _owners(model, names, tied, blocks, paths[id(embedding)], paths[id(head)], seen)
    layout = Layout(0, 1, ())
    if seen is not None:
        obstacle = find_obstacle(name, seen, owners, tied, key.config)
        layouts = [layout_of(shape, seen.tokens) for shape in seen.shapes]
        if obstacle is None and (len(set(layouts)) > 1 or layouts[0] is None):
            obstacle = f"hands hidden states of shape {list(seen.shapes[0])} to its blocks, or of different shapes"
        layout = layouts[0] or Layout(0, 1, ())
    return Anatomy(
        layers=_layers(model, owners, blocks, paths[id(embedding)], paths[id(head)]),
        embedding=paths[id(embedding)],
        head=paths[id(head)],
        parameters=parameters,
        tensors=tuple(model.state_dict()),
        tied=tied,
        returned=tuple(seen.returned) if seen is not None and obstacle is None else (ALONE,) * len(blocks),
        layout=layout,
        writes_embeddings=seen is not None and seen.writes_embeddings,
        calls_loss=seen is not None and seen.calls_loss,
        plain_loss=seen is not None and seen.plain_loss,
        obstacle=obstacle,
        attentions=tuple(
            tuple(f"{block}.{path}" for path in (seen.attentions[number] if seen is not None else ()))
            for number, block in enumerate(blocks)
        ),
    )


def count_layers(config: PretrainedConfig) -> tuple[int, int]:
    """A model's layers and parameters.

    Raises:
        InputError: the config makes no model, or the model cannot be cut into layers.
    """
    model = build_skeleton(config)
    return len(dissect(model).layers), sum(parameter.numel() for parameter in model.parameters())


def part_of(model: nn.Module, path: str) -> nn.Module | Tensor:
    """The module at `path`, or the parameter (or what stands for it) that a module has under that name."""
    holder, _, name = path.rpartition(".")
    part: nn.Module | Tensor = getattr(model.get_submodule(holder), name)
    return part


def hidden_width(config: PretrainedConfig, anatomy: Anatomy) -> int:
    """Numbers that cross a cut for each token: the hidden size, or what the blocks of this model are handed.

    Raises:
        InputError: the blocks' input was not seen, and the configuration has no width for all of them.
    """
    width = anatomy.layout.width
    if anatomy.layout.rest:
        return width
    hidden_size = getattr(config.get_text_config(), "hidden_size", None)
    if not isinstance(hidden_size, int):
        raise InputError(
            f"{config.model_type} has no hidden_size in its config, so what goes from block to block is not known; "
            "a model whose blocks all hand on hidden states of one width would do"
        )
    return hidden_size


def layer_of(anatomy: Anatomy, parameter: str) -> int:
    """The layer that a parameter belongs to.

    Raises:
        KeyError: it belongs to none.
    """
    for layer, paths in enumerate(anatomy.layers):
        if any(parameter == path or parameter.startswith(path + ".") for path in paths):
            return layer
    raise KeyError(parameter)


def _probe(model: PreTrainedModel, blocks: Sequence[nn.Module]) -> Seen | None:
    """What a forward shows; None where fake tensors do not get through it, and the model is not small either."""
    small = sum(parameter.numel() for parameter in model.parameters()) <= _SMALL
    for context in (imagined, nullcontext) if small else (imagined,):
        try:
            with context():
                allocate(model)
                return probe(model.eval(), blocks)
        except Exception:  # any model may do what cannot be followed; `check` is the judge then
            continue
    return None


def _blocks(model: PreTrainedModel, embedding: str) -> nn.ModuleList:
    plan = getattr(model.config.get_text_config(), "base_model_pp_plan", None) or {}
    for path in plan:
        module = _child(model.base_model, path)
        if isinstance(module, nn.ModuleList):
            return module
    lists: list[tuple[str, nn.ModuleList]] = []
    for path, module in model.named_modules():
        outer = any(path.startswith(known + ".") for known, _ in lists)
        if isinstance(module, nn.ModuleList) and len(module) and not outer:
            lists.append((path, module))
    if not lists:
        raise InputError(
            f"{type(model).__name__} keeps its blocks in no ModuleList of {type(model.base_model).__name__}"
        )

    def rank(candidate: tuple[str, nn.ModuleList]) -> tuple[int, int]:
        path, module = candidate
        common = [one for one, other in zip(path.split("."), embedding.split("."), strict=False) if one == other]
        return len(common), sum(parameter.numel() for parameter in module.parameters())

    return max(lists, key=rank)[1]


def _owners(
    model: PreTrainedModel,
    names: Mapping[str, nn.Parameter],
    tied: Mapping[str, str],
    blocks: Sequence[str],
    embedding: str,
    head: str,
    seen: Seen | None,
) -> dict[str, int]:
    """The layer of every name of every parameter: that of the block it is in, else that which uses it."""
    last = len(blocks) + 1
    places = {path: number + 1 for number, path in enumerate(blocks)}
    order = [path for path, _ in model.named_modules()]
    owners: dict[str, int] = {}
    for name in names:
        module = name.rpartition(".")[0]
        in_block = next((layer for path, layer in places.items() if name.startswith(path + ".")), None)
        used = seen.used.get(tied.get(name, name), ()) if seen is not None else ()
        if in_block is not None:
            owners[name] = in_block
        elif module == head or module.startswith(head + "."):
            owners[name] = last
        elif module == embedding:
            owners[name] = 0
        elif used and name not in tied:
            owners[name] = min(used[0], last)
        elif seen is not None:
            owners[name] = last if seen.calls.get(module) == frozenset({"after"}) else 0
        else:
            owners[name] = last if order.index(module) > order.index(blocks[-1]) else 0
    return owners


def _layers(
    model: PreTrainedModel, owners: Mapping[str, int], blocks: Sequence[str], embedding: str, head: str
) -> tuple[tuple[str, ...], ...]:
    """Every layer's paths: modules as large as they may be, the token embedding first and the head last."""
    paths: list[list[str]] = [[] for _ in range(len(blocks) + 2)]

    def visit(path: str, module: nn.Module) -> None:
        prefix = f"{path}." if path else ""
        inside = {owner for name, owner in owners.items() if name.startswith(prefix)}
        has_blocks = any(block.startswith(prefix) for block in blocks)
        if path in blocks:
            paths[blocks.index(path) + 1].append(path)
        elif len(inside) == 1 and not has_blocks:
            paths[inside.pop()].append(path)
        elif inside:
            for name, _ in module.named_parameters(recurse=False, remove_duplicate=False):
                paths[owners[prefix + name]].append(prefix + name)
            for name, child in module.named_children():
                visit(prefix + name, child)

    visit("", model)
    for number, block in enumerate(blocks):  # a block may hold no parameters
        if block not in paths[number + 1]:
            paths[number + 1].insert(0, block)
    paths[0].sort(key=lambda path: not (path == embedding or embedding.startswith(path + ".")))
    paths[-1].sort(key=lambda path: path == head)
    if not paths[0]:
        paths[0].append(embedding)
    if not paths[-1]:
        paths[-1].append(head)
    return tuple(tuple(own) for own in paths)


def _child(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
