"""A stage's weights: drawn from a seed, and written as shards of a model (`read` reads them).

Drawing is seeded for each layer by (seed, layer), so a layer starts the same whatever stage it is in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from evenflow.models.absent import is_unfilled
from evenflow.models.anatomy import build_constants, layer_of, part_of
from evenflow.models.stage import Stage

_DEVIATION = 0.02  # of what is drawn where a configuration does not say


@torch.no_grad()
def draw_weights(stage: Stage, seed: int) -> None:
    """Fill parameters and buffers as the model's own initialisation does, layer by layer.

    A weight that head and embedding share is drawn as the embedding's, wherever it is. Of a stage whose tensors are
    shared out each process draws them whole, so that weights do not depend on how many share them, and keeps its part
    before the next layer is drawn.
    """
    model, anatomy, sharing = stage.model, stage.anatomy, stage.sharing
    in_layers: set[int] = set()
    last = len(anatomy.layers) - 1
    for layer in stage.layers:
        torch.manual_seed(_layer_seed(seed, layer))
        for path in anatomy.layers[layer]:
            part = part_of(model, path)
            if isinstance(part, nn.Module):
                in_layers.update(map(id, part.modules()))
                _initialise(_drawer(model, path), part)
            else:
                _initialise_holder(stage, path)
        if sharing is not None and 0 < layer < last:
            sharing.cut(layer)
    absent = {id(own.module) for own in stage.absents}
    for path, module in model.named_modules():  # rotary tables and the like, which belong to no layer
        if id(module) not in in_layers and any(True for _ in module.buffers(recurse=False)):
            if id(module) in absent:
                for buffer in module.buffers(recurse=False):
                    buffer.zero_()
            else:
                _drawer(model, f"{path}.")._init_weights(module)
    if stage.is_last or stage.is_first:
        _draw_tied(stage, seed)
    _fill_constants(stage, seed)
    if sharing is not None:
        sharing.cut()


@torch.no_grad()
def make_up_weights(stage: Stage, device: torch.device) -> None:
    """Move a stage to `device` and fill it there with weights of the usual size, for who asks how long it takes alone.

    Nothing is drawn whole of a stage whose tensors are shared out: each is cut before it has any memory. Buffers
    (rotary tables and the like) are those of the model's own initialisation.
    """
    if stage.sharing is not None:
        stage.sharing.cut()
    stage.to(device)
    absent = {id(own.module) for own in stage.absents}
    for path, module in stage.model.named_modules():
        if id(module) not in absent and any(True for _ in module.buffers(recurse=False)):
            _drawer(stage.model, f"{path}.")._init_weights(module)
    for parameter in stage.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, _DEVIATION)
        else:
            parameter.fill_(1.0)
    for buffer in stage.buffers():
        if is_unfilled(buffer):
            buffer.zero_()


def _fill_constants(stage: Stage, seed: int) -> None:
    """Fill what a model's initialisation leaves out with what its constructor makes of it.

    Large parameters that only the constructor draws (GPT's Conv1D) are drawn as a linear layer's would be.
    """
    own: dict[str, Tensor] = {**dict(stage.model.named_buffers()), **dict(stage.model.named_parameters())}
    unfilled = {name: tensor for name, tensor in own.items() if is_unfilled(tensor)}
    if not unfilled:
        return
    torch.manual_seed(_layer_seed(seed, "constants"))
    model = build_constants(stage.model.config)
    made: dict[str, Tensor] = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    for name, tensor in unfilled.items():
        if made[name].is_meta:
            torch.manual_seed(_layer_seed(seed, name))
            tensor.normal_(0.0, getattr(stage.model.config.get_text_config(), "initializer_range", _DEVIATION))
        else:
            tensor.copy_(made[name])


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
    _initialise(_drawer(model, anatomy.embedding), embedding)
    if elsewhere is not None:
        delattr(embedding, "weight")
        embedding.weight = elsewhere


def _initialise_holder(stage: Stage, path: str) -> None:
    """Draw what the module of a parameter holds itself; what other stages have of it is drawn too, and let go of."""
    holder = stage.model.get_submodule(path.rpartition(".")[0])
    absent = [own for own in stage.absents if own.module is holder]
    for own in absent:
        setattr(holder, own.name, torch.empty(own.shape, dtype=own.dtype, device=stage.device))
    _drawer(stage.model, path)._init_weights(holder)
    for own in absent:
        own.fill(stage.device)


def write_weights(stages: Sequence[Stage], folder: Path, rank: int, ranks: int) -> dict[str, int]:
    """Write these stages' tensors as one shard, under the names that transformers reads.

    Tensors that are shared out are gathered one by one. All processes that share them take part, the first one writes.

    Returns:
        The bytes of each tensor in the shard; nothing where another process writes it.
    """
    written: dict[str, Tensor] = {}
    for stage in stages:
        own = {  # a tied weight is written where its first name is
            name: parameter
            for name, parameter in stage.named_model_parameters().items()
            if layer_of(stage.anatomy, name) in stage.layers
        }
        tensors = {**dict(_whole(stage, own)), **stage.named_model_buffers()}
        if _writes(stage):
            reverted = revert_weight_conversion(stage.model, tensors)
            written |= {name: tensor.detach().contiguous() for name, tensor in reverted.items()}
    if not all(_writes(stage) for stage in stages):
        return {}
    save_file(written, folder / shard_name(rank, ranks), metadata={"format": "pt"})
    return {name: tensor.nbytes for name, tensor in written.items()}


def _writes(stage: Stage) -> bool:
    return stage.sharing is None or stage.sharing.index == 0


def _whole(stage: Stage, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters, on the process that writes them."""
    for name, parameter in parameters.items():
        cut = None if stage.sharing is None else stage.sharing.cuts.get(name)
        whole = parameter
        if cut is not None and stage.sharing is not None:
            whole = stage.sharing.gathered(cut, parameter)
        if _writes(stage):
            yield name, whole


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


def _layer_seed(seed: int, layer: int | str) -> int:
    digest = hashlib.blake2b(f"weights {seed} {layer}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def _drawer(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """Who draws what is at `path`: the innermost model round it, as in transformers."""
    drawer, names = model, path.split(".")
    for depth in range(1, len(names)):
        module = model.get_submodule(".".join(names[:depth]))
        if isinstance(module, PreTrainedModel):
            drawer = module
    return drawer


def _initialise(drawer: PreTrainedModel, part: nn.Module) -> None:
    """Children first, as transformers does: a module may overwrite what its children drew."""
    if isinstance(part, PreTrainedModel):
        drawer = part
    for child in part.children():
        _initialise(drawer, child)
    drawer._init_weights(part)
