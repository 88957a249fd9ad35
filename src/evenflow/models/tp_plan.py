"""What a model's own tensor-parallel plan says of its modules and tensors, and whether it can be followed.

The plan is the model's: `base_model_tp_plan` of its configuration, and what its class says of the head. It names
modules and parameters, layers as `*`, and gives each a style by a word of transformers'. A word is read here as two
facts: along which dim a tensor is cut, and what happens where hidden states pass in and out of the module.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from evenflow.errors import InputError
from evenflow.models.anatomy import build_skeleton
from evenflow.models.cut import Cut

# What a module does with hidden states at its borders.
Border = Literal[
    "column",  # each process makes its part of the output
    "column gathered",  # and all parts are gathered
    "row",  # each has its part of the input, and outputs are added
    "row split",  # each takes its part of the whole input
    "rows of a table",  # each looks up the rows that it has
    "columns of a table",  # each looks up its part of every row
    "experts",  # each has a part of every expert, and outputs are added
    "summed",  # outputs are added
    "partial gradients",  # the module is whole, but sees a part of what its gradients are made from
    "partial rotary gradients",  # the same of the last part of its output alone
    "counted by all",  # hands its input on, into a sum over all processes
    "whole",  # nothing: every process does the same
]

_BORDERS: Mapping[str, Border] = {
    "colwise": "column",
    "colwise_gather_output": "column gathered",
    "colwise_rep": "column gathered",
    "rowwise": "row",
    "rowwise_split_input": "row split",
    "rowwise_rep": "row split",
    "packed_colwise": "column",
    "packed_rowwise": "row",
    "embedding_rowwise": "rows of a table",
    "embedding_colwise": "columns of a table",
    "moe_tp_experts": "experts",
    "all_reduce": "summed",
    "replicated_with_grad_allreduce": "partial gradients",
    "mla_kv_a_proj": "partial rotary gradients",
    "moe_identity_expert": "counted by all",
    "local_params": "whole",
    "replicate": "whole",
}
_COLUMNS, _ROWS = -2, -1
# Along which dim a style cuts a tensor of two or more dims; a style that is not here cuts none.
_DIMS: Mapping[str, int] = {
    "colwise": _COLUMNS,
    "colwise_gather_output": _COLUMNS,
    "colwise_rep": _COLUMNS,
    "packed_colwise": _COLUMNS,
    "rowwise": _ROWS,
    "rowwise_split_input": _ROWS,
    "rowwise_rep": _ROWS,
    "packed_rowwise": _ROWS,
    "embedding_rowwise": 0,
    "embedding_colwise": 1,
}
_PACKED = 2  # gate and up, side by side


@dataclass(frozen=True, slots=True)
class TensorRule:
    """A tensor that is cut.

    Attributes:
        dim: along which dim, from the front.
        packed: how many matrices lie side by side along it.
    """

    dim: int
    packed: int = 1


@dataclass(frozen=True, slots=True)
class TpPlan:
    """A model's plan, spelled out.

    Attributes:
        modules: the modules that do something at their borders, by path.
        tensors: the parameters that are cut, by every name that they have.
    """

    modules: Mapping[str, Border]
    tensors: Mapping[str, TensorRule]


def tp_plan_of(model: PreTrainedModel) -> TpPlan:
    """The plan of a model, whole or with pass-throughs.

    Raises:
        InputError: it has none for its blocks, or one with a style that is not known.
    """
    name = model.config.model_type
    styles: dict[str, str] = dict(getattr(model, "tp_plan", None) or {})
    if not any("*" in key for key in styles):
        raise InputError(
            f"{name} has no base_model_tp_plan, which says how its blocks are shared out; --tp 1, with more pipeline "
            "ranks or replicas, would do"
        )
    unknown = sorted({style for style in styles.values() if style not in _BORDERS})
    if unknown:
        raise InputError(
            f"the tensor-parallel plan of {name} has the style {unknown[0]!r}, which is not known here; known are "
            f"{', '.join(sorted(_BORDERS))}; --tp 1 would do"
        )
    modules: dict[str, Border] = {}
    tensors: dict[str, TensorRule] = {}
    for path, module in model.named_modules():
        style = styles.get(_with_stars(path))
        if style is not None:
            modules[path] = _BORDERS[style]
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            key = f"{path}.{own}" if path else own
            rule = _tensor_rule(styles.get(_with_stars(key), style), parameter)
            if rule is not None:
                tensors[key] = rule
    _agree_on_tied(model, modules, tensors)
    return TpPlan(modules, tensors)


def check_tensor_parallel(config: PretrainedConfig, tp: int) -> None:
    """Refuse a model that cannot be shared out over `tp` processes.

    Raises:
        InputError: it has no plan, a style that is not known, or something that `tp` does not divide: what, the
            numbers, and which degrees would do.
    """
    if tp == 1:
        return
    model = build_skeleton(config)
    plan = tp_plan_of(model)
    numbers = dict(_heads(model, plan))
    for key, rule in plan.tensors.items():
        parameter = model.get_parameter(key)
        if plan.modules.get(key.rpartition(".")[0]) not in _ANY_SIZE:
            shape = " x ".join(map(str, parameter.shape))
            numbers.setdefault(f"rows or columns of {key} ({shape})", parameter.shape[rule.dim] // rule.packed)
    for what, number in numbers.items():
        if number % tp:
            would = [own for own in range(1, tp) if all(other % own == 0 for other in numbers.values())]
            raise InputError(
                f"--tp {tp} does not divide the {number} {what} of {config.model_type}; --tp "
                f"{' or '.join(map(str, would))} would do"
            )


def find_cuts(model: PreTrainedModel, tp: int, index: int = 0) -> dict[str, Cut]:
    """The part of each parameter that process `index` of `tp` holds, by every name that it has; of a whole model."""
    if tp == 1:
        return {}
    rules = tp_plan_of(model).tensors
    return {
        name: Cut(tuple(model.get_parameter(name).shape), rule.dim, rule.packed, tp, index)
        for name, rule in rules.items()
    }


_HEADS = {"num_attention_heads": "attention heads", "num_key_value_heads": "key and value heads"}
# Whose parts may differ in size, since they are gathered or added up at once.
_ANY_SIZE: tuple[Border, ...] = ("column gathered", "row split", "rows of a table", "columns of a table")


def _heads(model: PreTrainedModel, plan: TpPlan) -> Iterator[tuple[str, int]]:
    """The numbers of heads, where attention makes a part of them on each process."""
    shared = [
        path
        for path, border in plan.modules.items()
        if border == "column" and any("head" in name for name in vars(model.get_submodule(path.rpartition(".")[0])))
    ]
    if shared:
        config = model.config.get_text_config()
        for field, words in _HEADS.items():
            number = getattr(config, field, None)
            if isinstance(number, int) and number > 0:
                yield words, number


def _with_stars(name: str) -> str:
    """A name as plans have it, with a star for each number of a layer."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _tensor_rule(style: str | None, parameter: nn.Parameter) -> TensorRule | None:
    if style is None or style not in _DIMS:
        return None
    packed = _PACKED if style.startswith("packed") else 1
    if parameter.ndim == 1:  # a bias: a part for each part of the output, or added once to the sum of all
        return TensorRule(0, packed) if _DIMS[style] == _COLUMNS else None
    return TensorRule(_DIMS[style] % parameter.ndim, packed)


def _agree_on_tied(model: PreTrainedModel, modules: dict[str, Border], tensors: dict[str, TensorRule]) -> None:
    """Cut a weight that head and embedding share in one way: by rows, of which each process looks up its own."""
    by_weight: dict[int, list[str]] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        by_weight.setdefault(id(parameter), []).append(key)
    for keys in by_weight.values():
        rules = {key: tensors.get(key) for key in keys}
        if len(set(rules.values())) <= 1:
            continue
        for key in keys:
            path = key.rpartition(".")[0]
            if isinstance(model.get_submodule(path), nn.Embedding) and tensors.get(key) is None:
                modules[path] = "rows of a table"
                tensors[key] = TensorRule(0)
        if len({tensors.get(key) for key in keys}) > 1:
            raise InputError(
                f"the tensor-parallel plan of {model.config.model_type} cuts one weight in several ways, as "
                f"{' and as '.join(keys)}; --tp 1 would do"
            )
