"""The anatomy of a Hugging Face causal LM: which of its modules belong to which layer.

    layer 0          what runs before the blocks and holds parameters: the token embedding (and what is beside it)
    layers 1 to n    the decoder blocks
    layer n + 1      what runs after them: the final norm and the head

A model says so itself in its `base_model_pp_plan`; for others the blocks are the longest ModuleList and the
rest is told apart by which side of it a module was defined on. What belongs to no layer holds no parameters
(rotary tables, say) and stays on every stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from evenflow.errors import InputError, first_line


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Module paths by layer, in the whole model.

    Attributes:
        layers: for each layer, the paths of its modules.
        embedding: the path of the token embedding.
        head: the path of the output projection.
        parameters: every parameter's name in whole-model order, a tied weight once.
    """

    layers: tuple[tuple[str, ...], ...]
    embedding: str
    head: str
    parameters: tuple[str, ...]

    def name(self, layer: int) -> str:
        """A layer's name: its first module's path."""
        return self.layers[layer][0] if layer < len(self.layers) - 1 else self.head


def build_skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The whole model on the meta device: modules and shapes, no memory.

    Raises:
        InputError: the config's values do not make a model.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # any class may refuse its config's values in any way
        text = first_line(error)
        raise InputError(f"the config does not make a {config.model_type} model: {text}") from None
    return model


def dissect(model: PreTrainedModel) -> Anatomy:
    """Find a model's layers.

    Raises:
        InputError: its parts cannot be told apart; the text says which.
    """
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise InputError(f"{type(model).__name__} has no input or output embeddings; it cannot be cut into layers")
    base = model.base_model
    blocks = _blocks(model, base)
    before, after = _around(base, blocks, embedding)
    layers = (
        tuple(names[id(module)] for module in before),
        *((names[id(block)],) for block in blocks),
        (*(names[id(module)] for module in after), names[id(head)]),
    )
    anatomy = Anatomy(
        layers=layers,
        embedding=names[id(embedding)],
        head=names[id(head)],
        parameters=tuple(name for name, _ in model.named_parameters()),
    )
    _check_covered(model, anatomy)
    return anatomy


def layer_of(anatomy: Anatomy, parameter: str) -> int:
    """The layer that a parameter belongs to.

    Raises:
        KeyError: it belongs to none.
    """
    for layer, paths in enumerate(anatomy.layers):
        if any(parameter.startswith(path + ".") for path in paths):
            return layer
    raise KeyError(parameter)


def _blocks(model: PreTrainedModel, base: nn.Module) -> nn.ModuleList:
    plan = getattr(model.config, "base_model_pp_plan", None) or {}
    for path in plan:
        module = _child(base, path)
        if isinstance(module, nn.ModuleList):
            return module
    lists = [module for module in base.children() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise InputError(f"{type(model).__name__} keeps its blocks in no ModuleList of {type(base).__name__}")
    return max(lists, key=len)


def _around(base: nn.Module, blocks: nn.ModuleList, embedding: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Modules with parameters that the base model runs before and after its blocks, by order of definition."""
    before: list[nn.Module] = [embedding]
    after: list[nn.Module] = []
    seen_blocks = False
    for module in base.children():
        if module is blocks:
            seen_blocks = True
        elif module is not embedding and any(True for _ in module.parameters()):
            (after if seen_blocks else before).append(module)
    return before, after


def _check_covered(model: PreTrainedModel, anatomy: Anatomy) -> None:
    for name in anatomy.parameters:
        try:
            layer_of(anatomy, name)
        except KeyError:
            raise InputError(
                f"{type(model).__name__} has a parameter {name} outside its embedding, blocks, norm and head; "
                "it cannot be cut into layers"
            ) from None


def _child(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
