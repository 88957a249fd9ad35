"""Weights that stages share: the embedding's, where the head is the same matrix."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from evenflow.models.anatomy import Anatomy, layer_of
from evenflow.models.stage import Stage


def tied_names(anatomy: Anatomy) -> frozenset[str]:
    """The weights that both the first and the last layer use, by their names in the whole model."""
    last = len(anatomy.layers) - 1
    return frozenset(
        name
        for other, name in anatomy.tied.items()
        if layer_of(anatomy, name) == 0 and layer_of(anatomy, other) == last
    )


def share_tied(stages: Sequence[Stage]) -> None:
    """Make what stages of one process share one tensor, with one gradient: the first of them has it."""
    if not stages:
        return
    anatomy = stages[0].anatomy
    shared: dict[str, nn.Parameter] = {}
    for stage in stages:
        own = dict(stage.model.named_parameters(remove_duplicate=False))
        for path, parameter in own.items():
            name = anatomy.tied.get(path, path)
            if name not in tied_names(anatomy):
                continue
            first = shared.setdefault(name, parameter)
            if first is not parameter:
                holder, _, attribute = path.rpartition(".")
                setattr(stage.model.get_submodule(holder), attribute, first)
