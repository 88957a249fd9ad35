"""One stage of a Hugging Face model: the model itself, with pass-throughs where other stages' layers would be.

The `ModuleList` keeps its full length, so models that index `config.layer_types[i]` or read attributes off a
layer work unchanged. The first stage is fed token ids, the others hidden states through `inputs_embeds`; the
last returns the loss, the others hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from evenflow.models.anatomy import Anatomy, build_skeleton, dissect
from evenflow.models.passthrough import AddsNothing, PassThrough
from evenflow.models.recompute import recompute_blocks
from evenflow.spec import Recompute


class Stage(nn.Module):
    """A contiguous run of layers of one model.

    Attributes:
        model: the Hugging Face model with pass-throughs in place of the layers that are elsewhere.
        anatomy: the whole model's.
        layers: the layers that this stage holds.
        is_first: whether it takes token ids.
        is_last: whether it returns the loss.
        blocks: the decoder blocks among its layers.
    """

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy, layers: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.anatomy = anatomy
        self.layers = tuple(layers)
        self.is_first = 0 in self.layers
        self.is_last = len(anatomy.layers) - 1 in self.layers
        blocks = [layer for layer in self.layers if 0 < layer < len(anatomy.layers) - 1]
        self.blocks = [model.get_submodule(path) for layer in blocks for path in anatomy.layers[layer]]
        for layer, paths in enumerate(anatomy.layers):
            if layer not in self.layers:
                for path in paths:
                    model.set_submodule(path, self._stand_in(path))

    def _stand_in(self, path: str) -> nn.Module:
        module = self.model.get_submodule(path)
        if isinstance(module, nn.Embedding) and path != self.anatomy.embedding:
            return AddsNothing()
        return PassThrough(module)

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run this stage for one microbatch.

        Args:
            hidden: token ids [batch, seq] on the first stage, hidden states [batch, seq, hidden] elsewhere.
            labels: token ids [batch, seq], read by the last stage; each position predicts the next token.

        Returns:
            Hidden states [batch, seq, hidden], or on the last stage the mean loss over the microbatch [].
        """
        feed = {"input_ids": hidden} if self.is_first else {"inputs_embeds": hidden}
        if self.is_last:
            loss: Tensor = self.model(**feed, labels=labels, use_cache=False).loss
            return loss
        output: Tensor = self.model.base_model(**feed, use_cache=False).last_hidden_state
        return output

    @property
    def device(self) -> torch.device:
        """Where this stage computes."""
        return next(self.parameters()).device

    def named_model_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of this stage by their names in the whole model, in whole-model order."""
        own = dict(self.model.named_parameters())
        return {name: own[name] for name in self.anatomy.parameters if name in own}

    def named_model_buffers(self) -> dict[str, Tensor]:
        """The buffers of this stage's layers that a checkpoint holds, by their names in the whole model."""
        prefixes = tuple(f"{path}." for layer in self.layers for path in self.anatomy.layers[layer])
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return {
            name: tensor
            for name, tensor in self.model.state_dict().items()
            if name not in parameters and name.startswith(prefixes)
        }


def build_stage(
    config: PretrainedConfig, layers: Sequence[int], device: str = "cpu", recompute: Recompute = "none"
) -> Stage:
    """A stage whose tensors are allocated but not yet filled; other stages' layers take no memory.

    Args:
        config: the model's configuration.
        layers: those that this stage holds.
        device: where its tensors are.
        recompute: `full` has every block keep its input alone and run its forward again in its backward.

    Raises:
        InputError: the config makes no model, or the model cannot be cut into layers.
    """
    skeleton = build_skeleton(config)
    stage = Stage(skeleton, dissect(skeleton), layers)
    allocate(stage, device)
    if recompute == "full":
        recompute_blocks(stage.blocks)
    return stage


def allocate(stage: nn.Module, device: str = "cpu") -> None:
    """Give every parameter and buffer of `stage` memory on `device`, not yet filled; a tied weight stays one."""
    made: dict[Tensor, Tensor] = {}
    for module in stage.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            setattr(module, name, made[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            if buffer not in made:
                made[buffer] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
            setattr(module, name, made[buffer])


def has_tied_embeddings(config: PretrainedConfig, model: PreTrainedModel) -> bool:
    """Whether head and embedding share one weight."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return bool(getattr(config, "tie_word_embeddings", False)) or (
        isinstance(head, nn.Linear) and isinstance(embedding, nn.Embedding) and head.weight is embedding.weight
    )
