"""One stage of a Hugging Face model: the model itself, with pass-throughs where other stages' blocks would be.

The `ModuleList` keeps its full length, so models that index `config.layer_types[i]` or read attributes off a layer
work unchanged. Every stage is fed the token ids and runs the model's own forward, so masks, positions and whatever else
blocks are handed are made where they are needed. Received hidden states take the place of what enters the stage's first
block; the forward ends where the next stage's begins. The last stage returns the loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from evenflow.errors import InputError
from evenflow.models.absent import Absent, allocate, make_absent, make_parameter_absent, refill
from evenflow.models.anatomy import Anatomy, build_skeleton, dissect
from evenflow.models.dropout import LayerSeeds, drops_out
from evenflow.models.passthrough import Entrance, Exit, Gate, PassThrough, Reached
from evenflow.models.recompute import keep_modules, recompute_modules
from evenflow.spec import Recompute, Recomputes, recompute_of

if TYPE_CHECKING:
    from evenflow.models.tensor_parallel import Sharing


class Stage(nn.Module):
    """A contiguous run of layers of one model.

    Attributes:
        model: the Hugging Face model with pass-throughs in place of the blocks that are elsewhere.
        anatomy: the whole model's.
        layers: the layers that this stage holds.
        is_first: whether it takes token ids.
        is_last: whether it returns the loss.
        blocks: the decoder blocks among its layers.
        absents: the weights of other stages.
        sharing: how its tensors are shared out over processes of the tp axis; None where they are whole.
        recompute: what its layers run again in their backward; one for all, or one for each of the model's.
    """

    sharing: Sharing | None = None
    recompute: Recomputes = "none"

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy, layers: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.anatomy = anatomy
        self.layers = tuple(layers)
        last = len(anatomy.layers) - 1
        self.is_first = 0 in self.layers
        self.is_last = last in self.layers
        own = [layer for layer in self.layers if 0 < layer < last]
        self.blocks = [model.get_submodule(anatomy.layers[layer][0]) for layer in own]
        self.absents: list[Absent] = []
        self._gate = Gate()
        for layer, paths in enumerate(anatomy.layers):
            if layer not in self.layers and not 0 < layer < last:
                for path in paths:
                    self.absents += _take_out(model, path, anatomy.writes_embeddings)
        self._set_stand_ins(own, last)
        self._seeds = LayerSeeds()
        self.drops_out = drops_out(model, model.config)
        if self.drops_out:
            self._seed_layers(own, last)

    def _set_stand_ins(self, own: Sequence[int], last: int) -> None:
        """Put pass-throughs where other stages' blocks are, and gates where this stage begins and ends."""
        anatomy, returned = self.anatomy, self.anatomy.returned
        end = 1 if self.is_first or not self.layers else self.layers[0]
        end = max([end, *(layer + 1 for layer in own)])  # the layer that the forward does not reach
        for layer in range(1, last):
            if layer in own:
                continue
            path = anatomy.layers[layer][0]
            block = self.model.get_submodule(path)
            stand_in: nn.Module
            if layer == end and not self.is_last:
                stand_in = Exit(block, returned[layer - 1], self._gate)
            elif layer == last - 1 and not own and not self.is_first:
                stand_in = Entrance(block, returned[layer - 1], self._gate)
            else:
                stand_in = PassThrough(block, returned[layer - 1])
            self.model.set_submodule(path, stand_in)
        if own and not self.is_first:
            self._gate.enter_at(self.blocks[0])
        if own and end == last and not self.is_last:
            self._gate.leave_after(self.blocks[-1], returned[-1])

    def set_recompute(self, recompute: Recomputes) -> None:
        """From now on have each block run again in its backward what `recompute` says, of that as much as there is."""
        for block in self.blocks:
            keep_modules(block.modules())
        for layer, block in self._own_blocks():
            recompute_modules(self._run_again(layer, block, recompute_of(recompute, layer)))
        self.recompute = recompute

    def can_recompute(self, recompute: Recompute) -> bool:
        """Whether any block has something to run again in this way."""
        return any(self._run_again(layer, block, recompute) for layer, block in self._own_blocks())

    def _run_again(self, layer: int, block: nn.Module, recompute: Recompute) -> list[nn.Module]:
        if recompute == "selective":
            return [self.model.get_submodule(path) for path in self.anatomy.attentions[layer - 1]]
        return [block] if recompute == "full" else []

    def _own_blocks(self) -> list[tuple[int, nn.Module]]:
        last = len(self.anatomy.layers) - 1
        return list(zip([layer for layer in self.layers if 0 < layer < last], self.blocks, strict=True))

    def _seed_layers(self, own: Sequence[int], last: int) -> None:
        """Have each layer draw from its own seed; the first begins with the forward, the last after the blocks."""
        for layer, block in zip(own, self.blocks, strict=True):
            self._seeds.before(block, layer)
        if self.is_last:
            self._seeds.after(self.model.get_submodule(self.anatomy.layers[last - 1][0]), last)

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        ids: Tensor | None = None,
        positions: Tensor | None = None,
        draw: int | None = None,
    ) -> Tensor:
        """Run this stage for one microbatch.

        Args:
            hidden: token ids [batch, seq] on the first stage, hidden states [batch, seq, width] elsewhere.
            labels: token ids [batch, seq], read by the last stage; each position predicts the next token.
            ids: token ids [batch, seq], read by models whose later blocks look at them; by default those that are
                there, or zeros.
            positions: of each token in its document [batch, seq]; by default in the sequence.
            draw: what dropout is drawn from, one number for all stages; by default as torch's generators are.

        Returns:
            Hidden states [batch, seq, width], or on the last stage the mean loss of the learned tokens [].

        Raises:
            InputError: there are positions, and the model takes none; or its code passed by this stage's blocks.
        """
        layout = self.anatomy.layout
        if self.is_first:
            ids = hidden
        else:
            # Under tp, what entered hangs on the tensor that it entered from, and would hold that, were it a leaf:
            # neither would ever be freed.
            own = hidden.view_as(hidden) if self.sharing is not None and hidden.is_leaf else hidden
            self._gate.received = layout.entering(own)
            if ids is None:
                ids = labels if labels is not None else hidden.new_zeros(hidden.shape[:2], dtype=torch.long)
        self._seeds.draw = draw
        if self.drops_out:
            self._seeds.begin(0)
        rest = {} if positions is None else self._positions(positions)
        try:
            result = self.model(input_ids=ids, labels=labels if self.is_last else None, use_cache=False, **rest)
        except Reached as reached:
            output = reached.hidden
            missed = self._gate.received is not None
        else:
            output = result.loss
            # A last stage without labels has no loss; any other that comes to the forward's end has missed its own.
            missed = self._gate.received is not None or (output is None and (not self.is_last or labels is not None))
        finally:
            self._gate.received = None
        if missed:
            raise InputError(
                f"{self.model.config.model_type} passed by the blocks of layers {self.layers[0]} to {self.layers[-1]}, "
                "as models do that skip blocks at random; a single process trains it whole"
            )
        return output if self.is_last else layout.travelling(output, len(ids))

    def _positions(self, positions: Tensor) -> dict[str, Tensor]:
        if "position_ids" not in inspect.signature(self.model.forward).parameters:
            raise InputError(
                f"{self.model.config.model_type} takes no position ids, so documents in one sequence would see each "
                "other; data without positions would do"
            )
        return {"position_ids": positions}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As any module; absent weights follow."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own lacks annotations
        refill(self.absents, fn)
        return self

    @property
    def device(self) -> torch.device:
        """Where this stage computes."""
        return next(self.parameters()).device

    def named_model_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of this stage by their names in the whole model, in whole-model order; a tied one once."""
        own = {self.anatomy.tied.get(name, name): parameter for name, parameter in self.model.named_parameters()}
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
    config: PretrainedConfig,
    layers: Sequence[int],
    device: str = "cpu",
    recompute: Recomputes = "none",
    must_equal: bool = True,
) -> Stage:
    """A stage whose tensors are allocated but not yet filled; other stages' layers take no memory.

    Args:
        config: the model's configuration.
        layers: those that this stage holds.
        device: where its tensors are.
        recompute: what blocks run again in their backward, one for all or one for each of the model's layers: with
            `full` a block keeps its input alone, with `selective` its attention does.
        must_equal: refuse a part of a model that cannot be split; what only times its layers need not.

    Raises:
        InputError: the config makes no model, or the model cannot be cut into layers.
    """
    skeleton = build_skeleton(config)
    anatomy = dissect(skeleton)
    if must_equal and len(layers) < len(anatomy.layers):
        refuse_split(config, anatomy)
    stage = Stage(skeleton, anatomy, layers)
    allocate(stage, device)
    stage.set_recompute(recompute)
    return stage


def refuse_split(config: PretrainedConfig, anatomy: Anatomy) -> None:
    """Refuse to split a model whose code prevents it.

    Raises:
        InputError: what prevents it.
    """
    if anatomy.obstacle is not None:
        raise InputError(f"{config.model_type} does not split: {anatomy.obstacle}; a single process trains it whole")


def _take_out(model: PreTrainedModel, path: str, writable: bool) -> list[Absent]:
    """Make a module of another stage absent, or one parameter of a module that several stages have."""
    owner, _, name = path.rpartition(".")
    holder = model.get_submodule(owner)
    if name in dict(holder.named_parameters(recurse=False, remove_duplicate=False)):
        return [make_parameter_absent(holder, name, getattr(holder, name))]
    return make_absent(model.get_submodule(path), writable)


def has_tied_embeddings(config: PretrainedConfig, model: PreTrainedModel) -> bool:
    """Whether head and embedding share one weight."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return bool(getattr(config, "tie_word_embeddings", False)) or (
        isinstance(head, nn.Linear) and isinstance(embedding, nn.Embedding) and head.weight is embedding.weight
    )
