"""Shares out the tensors of a stage over the processes of the tp axis, as the model's own plan says (`models.tp_plan`).

A module computes with this process's part of its parameters and talks to the others where hidden states pass its
borders (`models.collectives`). Outside of that every process holds the same hidden states and the same gradients of
them, so stages exchange what they would without tp, and what is not cut is computed by all alike.

In a run the parts are DTensors: each knows the whole tensor's shape and where its own part lies. Layers compute with
the plain part all the same. DTensor's own dispatch would come to the same sums, and take longer on each operator than a
small layer does; and of a tensor that several layers read it would add up the gradients once for each.

The gradients of shared weights are made by autograd, together with those of inputs: there is no W to put off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional
from torch.utils._pytree import tree_map

from evenflow.models.absent import is_unfilled
from evenflow.models.anatomy import layer_of
from evenflow.models.collectives import enter, gather, leave, split
from evenflow.models.cut import Cut
from evenflow.models.shared_dropout import share_draws
from evenflow.models.shared_loss import shared_loss
from evenflow.models.stage import Stage
from evenflow.models.tp_plan import Border, TpPlan
from evenflow.runtime import ImaginedTensorGroup, TensorGroup, add_row_gradients, differentiable, local


class Sharing:
    """How one stage is shared out, and its parameters as they are cut.

    Its modules are set up at once, and take whole parameters until those are cut.

    Args:
        stage: the stage, its parameters whole.
        plan: the whole model's.
        group: those that share it out.

    Attributes:
        cuts: this process's part of each parameter that is cut, by its name in the whole model.
        group: as given.
        logits_begin: the first token whose logits are here, where logits stay in parts; None where they are whole.
    """

    logits_begin: int | None = None

    def __init__(self, stage: Stage, plan: TpPlan, group: TensorGroup) -> None:
        self._stage = stage
        self.group = group
        self._done: set[str] = set()
        anatomy = stage.anatomy
        own = dict(stage.model.named_parameters(remove_duplicate=False))
        self._paths = {path: anatomy.tied.get(path, path) for path in own if path in plan.tensors}
        self.cuts: dict[str, Cut] = {}
        for path, name in self._paths.items():
            rule = plan.tensors[path]
            self.cuts[name] = Cut(tuple(own[path].shape), rule.dim, rule.packed, group.size, group.index)
        absent = {id(other.module) for other in stage.absents}
        for path, module in stage.model.named_modules():
            is_own = any(path == part or path.startswith(f"{part}.") for part in _parts(stage))
            border = plan.modules.get(path, "whole")
            has_cuts = any(f"{path}.{name}" in self._paths for name, _ in module.named_parameters(recurse=False))
            if is_own and id(module) not in absent and (border != "whole" or has_cuts):
                _set_up(module, border, group, self._cut_of(path), stage.model.config)
        self._share_loss()

    def _share_loss(self) -> None:
        """Leave logits in parts where the loss is made from nothing else, and make it from the parts."""
        stage, anatomy = self._stage, self._stage.anatomy
        head = stage.model.get_submodule(anatomy.head)
        if (
            stage.is_last
            and anatomy.plain_loss
            and isinstance(head, _SharedLinear)
            and head.border == "column gathered"
        ):
            head.border = "column"
            self.logits_begin = head.cut.begin
            stage.model.loss_function = partial(shared_loss, self.group, head.cut.begin)

    @property
    def size(self) -> int:
        """How many processes share the stage."""
        return self.group.size

    @property
    def index(self) -> int:
        """Which of them this is."""
        return self.group.index

    def _cut_of(self, path: str) -> Callable[[str], Cut]:
        """The cut of a parameter of the module at `path`."""
        return lambda name: self.cuts[self._paths[f"{path}.{name}"]]

    @torch.no_grad()
    def cut(self, layer: int | None = None) -> None:
        """Keep of each parameter, or those of a layer, this process's part alone; what is not filled yet stays."""
        anatomy = self._stage.anatomy
        for path, name in self._paths.items():
            if path in self._done or (layer is not None and layer_of(anatomy, path) != layer):
                continue
            whole = self._stage.model.get_parameter(path)
            if layer is not None and not whole.is_meta and is_unfilled(whole):
                continue
            part = nn.Parameter(self.cuts[name].take(whole), requires_grad=whole.requires_grad)
            for other in [own for own, shared in self._paths.items() if shared == name]:
                _set(self._stage.model, other, part)
                self._done.add(other)

    def distribute(self, mesh: DeviceMesh) -> None:
        """Make the parts DTensors over the processes of the tp axis."""
        made: dict[str, nn.Parameter] = {}
        for path, name in self._paths.items():
            if name not in made:
                part = self._stage.model.get_parameter(path)
                whole = self.cuts[name].distributed(part.detach(), mesh)
                made[name] = nn.Parameter(whole, requires_grad=part.requires_grad)
            _set(self._stage.model, path, made[name])

    @torch.no_grad()
    def gathered(self, cut: Cut, part: Tensor) -> Tensor:
        """A whole tensor in host memory, from the parts of all processes, which have to ask for it at once."""
        return cut.gather(local(part).detach().cpu(), self.group)


def share_out(stage: Stage, plan: TpPlan, group: TensorGroup) -> Sharing:
    """Set a stage up to be shared out by `group`; its parameters are whole until `Sharing.cut`.

    Raises:
        InputError: it drops out in a way that cannot be shared out.
    """
    recompute = stage.recompute
    stage.set_recompute("none")  # and again afterwards, since what modules do at their borders is run again too
    stage.sharing = Sharing(stage, plan, group)
    if stage.drops_out:
        imagined = ImaginedTensorGroup(group.size, group.index)
        share_draws(stage, group, lambda other: Sharing(other, plan, imagined).cut())
    stage.set_recompute(recompute)
    return stage.sharing


def _parts(stage: Stage) -> list[str]:
    """The paths of this stage's layers."""
    return [path for layer in stage.layers for path in stage.anatomy.layers[layer]]


def _set(model: nn.Module, path: str, parameter: nn.Parameter) -> None:
    holder, _, name = path.rpartition(".")
    setattr(model.get_submodule(holder), name, parameter)


def _set_up(module: nn.Module, border: Border, group: TensorGroup, cut_of: Callable[[str], Cut], config: Any) -> None:
    """Have a module do at its borders what the plan says."""
    if isinstance(module, nn.Embedding) and border in ("rows of a table", "columns of a table"):
        _become(module, _SharedTable, group, border, cut_of("weight"))
    elif isinstance(module, nn.Linear) and border in ("column", "column gathered", "row", "row split"):
        _become(module, _SharedLinear, group, border, cut_of("weight"))
    else:
        rotary = int(getattr(config.get_text_config(), "qk_rope_head_dim", 0) or 0)
        module.forward = partial(_with_borders, type(module).forward, module, border, group, rotary)


def _become(module: nn.Module, kind: type[nn.Module], group: TensorGroup, border: Border, cut: Cut) -> None:
    """Put `kind` between a module's own class and torch's, so that its own forward still does what it adds."""
    own = type(module)
    module.__class__ = type(own.__name__, (kind,) if own in kind.__bases__ else (own, kind), {})
    module.shared_by, module.border, module.cut = group, border, cut  # type: ignore[assignment]  # plain attributes


class _SharedLinear(nn.Linear):
    """A linear layer of which this process has some columns (of the product) or some rows."""

    shared_by: TensorGroup
    border: Border
    cut: Cut

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`; [..., in] or this process's part of it, to [..., out] or this process's part of that."""
        group, weight = self.shared_by, differentiable(self.weight)
        own: Tensor | None = self.bias
        bias = None if own is None else differentiable(own)
        if self.border in ("column", "column gathered"):
            output = functional.linear(enter(input, group), weight, bias)
            return gather(output, group, self.cut.shape[0]) if self.border == "column gathered" else output
        part = split(input, group) if self.border == "row split" else input
        # Flat, so that the product is no view: what it becomes in place is the sum.
        flat = leave(functional.linear(part.reshape(-1, part.shape[-1]), weight), group)
        total = flat if bias is None else flat + bias
        return total.view(*input.shape[:-1], total.shape[-1])


class _SharedTable(nn.Embedding):
    """An embedding of which this process has some rows, or a part of every row."""

    shared_by: TensorGroup
    border: Border
    cut: Cut

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Embedding`."""
        group, weight = self.shared_by, local(self.weight)
        padding: int | None = self.padding_idx
        if self.border == "columns of a table":
            return gather(self._rows(input, weight, padding), group, self.embedding_dim)
        begin, end = self.cut.begin, self.cut.begin + weight.shape[0]
        elsewhere = (input < begin) | (input >= end)
        own_padding = padding - begin if padding is not None and begin <= padding < end else None
        rows = self._rows((input - begin).masked_fill(elsewhere, 0), weight, own_padding)
        return leave(rows.masked_fill(elsewhere.unsqueeze(-1), 0.0), group)

    def _rows(self, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return add_row_gradients(ids, self.weight, padding)
        return functional.embedding(ids, weight)


def _with_borders(
    forward: Any, module: nn.Module, border: Border, group: TensorGroup, rotary: int, *args: Any, **kwargs: Any
) -> Any:
    """Run any module's forward with its parts, and do at its borders what the plan says."""
    has_parts = border == "experts" or any(True for _ in module.parameters(recurse=False))
    if border == "experts" or (border == "summed" and has_parts):
        args, kwargs = tree_map(partial(_enter_any, group), (args, kwargs))
    elif border == "counted by all":
        args = (args[0] / group.size, *args[1:])
    entered = (lambda own: enter(own, group)) if border == "partial gradients" else (lambda own: own)
    with _parts_in_place(module, entered):
        output = forward(module, *args, **kwargs)
    if border in ("experts", "summed"):
        return leave(output.clone(), group)  # whose memory the module may have kept
    if border == "partial rotary gradients":
        plain, rotated = output.split([output.shape[-1] - rotary, rotary], dim=-1)
        return torch.cat([plain, enter(rotated, group)], dim=-1)
    return output


def _enter_any(group: TensorGroup, value: Any) -> Any:
    return enter(value, group) if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def _parts_in_place(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, a module's own parameters are this process's plain parts of them."""
    own: Mapping[str, nn.Parameter | None] = dict(module._parameters)
    parts: dict[str, Any] = {name: None if it is None else change(differentiable(it)) for name, it in own.items()}
    module._parameters.update(parts)
    try:
        yield
    finally:
        module._parameters.update(own)
