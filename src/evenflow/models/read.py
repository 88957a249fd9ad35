"""Reads a stage's weights from safetensors files, through the mapping by which transformers renames and joins tensors.

Checkpoints name tensors otherwise than modules do, and some of them a module's tensor is made from (experts are stored
one by one and computed with as one). Only what this stage holds is read, and one of its tensors at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from evenflow.errors import InputError, first_line
from evenflow.models.cut import Cut
from evenflow.models.stage import Stage


@torch.no_grad()
def read_weights(stage: Stage, files: Sequence[Path]) -> None:
    """Copy this stage's parameters from safetensors files.

    Raises:
        InputError: a tensor is missing, misshapen, unreadable or has no place; the text names it and its file.
    """
    wanted = _wanted(stage)
    found: set[str] = set()
    parts: set[str] = set()  # what was read as this process's part alone
    with ExitStack() as stack:
        made = _collect(stage, files, wanted, stack, parts)
        for name in list(made):
            conversion, file = made.pop(name)  # it keeps what it has read
            try:
                tensors = conversion.convert(name, model=stage.model, config=stage.model.config)
            except Exception as error:  # any operation of any family
                raise InputError(f"{file}: {name} cannot be made from its tensors: {first_line(error)}") from None
            for target, value in tensors.items():
                if target in wanted:
                    tensor: Tensor = value[0] if isinstance(value, list) else value
                    _copy(wanted[target], tensor, target, file, _cut_of(stage, target), name in parts)
                    found.add(stage.anatomy.tied.get(target, target))
    parameters = stage.named_model_parameters()
    missing = [name for name in parameters if name not in found]
    if missing:
        raise InputError(
            f"{files[0].parent} has no tensor {missing[0]} ({len(missing)} of {len(parameters)} are missing); "
            "--from-scratch would draw weights instead"
        )


def _wanted(stage: Stage) -> dict[str, Tensor]:
    """This stage's tensors, tied ones under all their names."""
    wanted: dict[str, Tensor] = {**stage.named_model_parameters(), **stage.named_model_buffers()}
    for other, name in stage.anatomy.tied.items():
        if name in wanted:
            wanted[other] = wanted[name]
    return wanted


def _collect(
    stage: Stage, files: Sequence[Path], wanted: Mapping[str, Tensor], stack: ExitStack, parts: set[str]
) -> dict[str, tuple[Any, Path]]:
    """For each tensor of the stage, how it is made and from which tensors of the files, which are not read yet."""
    conversions = get_model_conversion_mapping(stage.model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    names = dict.fromkeys(stage.anatomy.tensors, True)
    prefix: str = stage.model.base_model_prefix
    made: dict[str, tuple[Any, Path]] = {}
    keys = [(key, file, reader) for file in files for reader, key in _open(file, stack)]
    for key, file, reader in sorted(keys, key=lambda entry: _natural(entry[0])):
        renamed, pattern = rename_source_key(key, renamings, converters, prefix, names)
        if renamed not in names and key in names:
            renamed, pattern = rename_source_key(key, [], [], prefix, names)
        if pattern is None:
            targets, fresh = [renamed], WeightRenaming(key, renamed)
        else:
            converter = by_pattern[pattern]
            first = converter.target_patterns[0]
            targets, fresh = [renamed.replace(first, own) for own in converter.target_patterns], deepcopy(converter)
        if not any(target in names for target in targets):
            _refuse_extra(stage, key, renamed, file)
        elif any(target in wanted for target in targets):
            conversion, _ = made.setdefault(renamed, (fresh, file))
            own = _cut_of(stage, renamed) if pattern is None else None  # what is made from several is read whole
            conversion.add_tensor(
                renamed, key, pattern or key, _reading(reader, key, file, own, partial(parts.add, renamed))
            )
    return made


def _open(file: Path, stack: ExitStack) -> list[tuple[Any, str]]:
    try:
        reader = stack.enter_context(safe_open(file, framework="pt"))
        return [(reader, key) for key in reader.keys()]  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is not a readable safetensors file: {error}") from None


def _cut_of(stage: Stage, name: str) -> Cut | None:
    """The part of a tensor that this process holds; None where it holds all."""
    return None if stage.sharing is None else stage.sharing.cuts.get(stage.anatomy.tied.get(name, name))


def _reading(reader: Any, key: str, file: Path, cut: Cut | None, tell_part: Callable[[], None]) -> Callable[[], Tensor]:
    """How a tensor is read: whole, or the part that a process holds, where the file has the shape that is cut."""

    def read() -> Tensor:
        try:
            if cut is not None and tuple(reader.get_slice(key).get_shape()) == cut.shape:
                tell_part()
                return cut.read(reader.get_slice(key))
            tensor: Tensor = reader.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} is not a readable safetensors file: {error}") from None
        return tensor

    return read


def _refuse_extra(stage: Stage, key: str, renamed: str, file: Path) -> None:
    """Refuse a tensor that no module takes, but for those that models say they leave, and what they compute anew."""
    ignored = getattr(stage.model, "_keys_to_ignore_on_load_unexpected", None) or ()
    computed = {name.rpartition(".")[2] for name, _ in stage.model.named_buffers()}
    if any(re.search(pattern, own) for pattern in ignored for own in (key, renamed)):
        return
    if renamed.rpartition(".")[2] in computed | {"inv_freq", "masked_bias"}:
        return
    raise InputError(
        f"{file} has a tensor {key}, for which a {type(stage.model).__name__} of this config has no place; "
        "a config that fits the weights, or --from-scratch, would do"
    )


def _natural(key: str) -> list[tuple[int, str]]:
    """Orders names by the numbers in them, as experts have to be joined."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]


def _copy(parameter: Tensor, tensor: Tensor, name: str, file: Path, cut: Cut | None, is_part: bool) -> None:
    shape = parameter.shape if cut is None else cut.shape
    if not is_part and tensor.shape != shape:
        raise InputError(f"{file}: {name} has shape {list(tensor.shape)}, the config says {list(shape)}")
    parameter.copy_(tensor if cut is None or is_part else cut.take(tensor))
