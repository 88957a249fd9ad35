"""A stage's weights: drawn from a seed, read from safetensors beside the config, and written as shards of a model.

Drawing is seeded for each layer by (seed, layer), so a layer starts the same whatever stage it is in. Reading
touches only the tensors that the stage holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from evenflow.errors import InputError
from evenflow.models.absent import is_unfilled
from evenflow.models.anatomy import build_constants, part_of
from evenflow.models.stage import Stage


@torch.no_grad()
def draw_weights(stage: Stage, seed: int) -> None:
    """Fill parameters and buffers as the model's own initialisation does, layer by layer.

    A weight that head and embedding share is drawn as the embedding's, wherever it is.
    """
    model, anatomy = stage.model, stage.anatomy
    in_layers: set[int] = set()
    for layer in stage.layers:
        torch.manual_seed(_layer_seed(seed, layer))
        for path in anatomy.layers[layer]:
            part = part_of(model, path)
            if isinstance(part, nn.Module):
                in_layers.update(map(id, part.modules()))
                _initialise(model, part)
            else:
                _initialise_holder(stage, model.get_submodule(path.rpartition(".")[0]))
    absent = {id(own.module) for own in stage.absents}
    for module in model.modules():  # rotary tables and the like, which belong to no layer
        if id(module) not in in_layers and any(True for _ in module.buffers(recurse=False)):
            if id(module) in absent:
                for buffer in module.buffers(recurse=False):
                    buffer.zero_()
            else:
                model._init_weights(module)
    if stage.is_last or stage.is_first:
        _draw_tied(stage, seed)
    _fill_constants(stage)


def _fill_constants(stage: Stage) -> None:
    """Fill the buffers that a model's initialisation leaves out with what its constructor makes of them."""
    unfilled = {name: buffer for name, buffer in stage.model.named_buffers() if is_unfilled(buffer)}
    if not unfilled:
        return
    made = dict(build_constants(stage.model.config).named_buffers())
    for name, buffer in unfilled.items():
        buffer.copy_(made[name])


def _draw_tied(stage: Stage, seed: int) -> None:
    """Draw the head's weight as the embedding's, where they are one; on a stage without the embedding too."""
    model, anatomy = stage.model, stage.anatomy
    shared = f"{anatomy.embedding}.weight"
    if f"{anatomy.head}.weight" not in (anatomy.tied.keys() | set(anatomy.tied.values())) or shared not in (
        anatomy.tied.keys() | set(anatomy.tied.values())
    ):
        return
    embedding = model.get_submodule(anatomy.embedding)
    elsewhere = embedding.weight if not stage.is_first else None
    if elsewhere is not None:
        delattr(embedding, "weight")
        embedding.weight = model.get_submodule(anatomy.head).weight  # the same memory, drawn through the embedding
    torch.manual_seed(_layer_seed(seed, 0))
    _initialise(model, embedding)
    if elsewhere is not None:
        delattr(embedding, "weight")
        embedding.weight = elsewhere


def _initialise_holder(stage: Stage, holder: nn.Module) -> None:
    """Draw what a module holds itself, for the parameters of this stage; others draw as well and are let go of."""
    absent = [own for own in stage.absents if own.module is holder]
    for own in absent:
        setattr(holder, own.name, torch.empty(own.shape, dtype=own.dtype, device=stage.device))
    stage.model._init_weights(holder)
    for own in absent:
        own.fill(stage.device)


@torch.no_grad()
def read_weights(stage: Stage, files: Sequence[Path]) -> None:
    """Copy this stage's parameters from safetensors files.

    Raises:
        InputError: a tensor is missing, misshapen or unreadable; the text names it and its file.
    """
    parameters = stage.named_model_parameters()
    wanted: dict[str, Tensor] = {**parameters, **stage.named_model_buffers()}
    found: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys() & wanted.keys():
                    _copy(wanted[name], reader.get_tensor(name), name, file)
                    found.add(name)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} is not a readable safetensors file: {error}") from None
    missing = [name for name in parameters if name not in found]
    if missing:
        raise InputError(
            f"{files[0].parent} has no tensor {missing[0]} ({len(missing)} of {len(parameters)} are missing); "
            "--from-scratch would draw weights instead"
        )


def write_weights(
    stages: Sequence[Stage], folder: Path, rank: int, ranks: int, left_out: Collection[str] = ()
) -> dict[str, int]:
    """Write these stages' tensors as one shard, under the names that transformers reads.

    Those in `left_out`, by their names in the whole model, are another rank's to write.

    Returns:
        The bytes of each tensor in the shard.
    """
    written: dict[str, Tensor] = {}
    for stage in stages:
        tensors: dict[str, Tensor] = {**stage.named_model_parameters(), **stage.named_model_buffers()}
        tensors = {name: own for name, own in tensors.items() if name not in left_out}
        reverted = revert_weight_conversion(stage.model, tensors)
        written |= {name: tensor.detach().contiguous() for name, tensor in reverted.items()}
    save_file(written, folder / shard_name(rank, ranks), metadata={"format": "pt"})
    return {name: tensor.nbytes for name, tensor in written.items()}


def write_index(folder: Path, shards: Sequence[Mapping[str, int]]) -> None:
    """Write the index over all ranks' shards, which is how transformers finds a tensor's file."""
    ranks = len(shards)
    if ranks == 1:
        return
    index = {
        "metadata": {"total_size": sum(sum(shard.values()) for shard in shards)},
        "weight_map": {name: shard_name(rank, ranks) for rank, shard in enumerate(shards) for name in shard},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def shard_name(rank: int, ranks: int) -> str:
    """The file of one rank's tensors, as transformers names them."""
    return "model.safetensors" if ranks == 1 else f"model-{rank + 1:05d}-of-{ranks:05d}.safetensors"


def _layer_seed(seed: int, layer: int) -> int:
    digest = hashlib.blake2b(f"weights {seed} {layer}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def _initialise(model: PreTrainedModel, part: nn.Module) -> None:
    """Children first, as transformers does: a module may overwrite what its children drew."""
    for child in part.children():
        _initialise(model, child)
    model._init_weights(part)


def _copy(parameter: Tensor, tensor: Tensor, name: str, file: Path) -> None:
    if parameter.shape != tensor.shape:
        raise InputError(f"{file}: {name} has shape {list(tensor.shape)}, the config says {list(parameter.shape)}")
    parameter.copy_(tensor)
