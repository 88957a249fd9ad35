"""Has a stage compute in bf16, but for what its model keeps in fp32 all the same.

Weights are drawn and read in fp32 and rounded afterwards, so that a model starts from the same ones in either type.
Which tensors are bf16 the model's own code says: those that it makes of the type that it is built in (tables of rotary
angles, for one, are made in fp32), less those that its class has transformers keep in fp32 (biases of routers).
"""

from __future__ import annotations

import re
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from evenflow.models.absent import refill
from evenflow.models.anatomy import ConfigKey, build_skeleton
from evenflow.models.stage import Stage
from evenflow.runtime import TORCH_DTYPES
from evenflow.spec import Dtype


@torch.no_grad()
def compute_in(stage: Stage, dtype: Dtype) -> None:
    """Round a stage's tensors to `dtype`, before anybody else has its parameters; tied ones stay one."""
    if dtype == "fp32":
        return
    less, known = TORCH_DTYPES[dtype], parameter_dtypes(stage.model.config, dtype)
    made: dict[Tensor, Tensor] = {}
    for path, module in stage.model.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in made:
                rounded = parameter.to(known.get(prefix + name, less))
                made[parameter] = nn.Parameter(rounded, requires_grad=parameter.requires_grad)
            setattr(module, name, made[parameter])
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(known.get(prefix + name, less)))
    refill(stage.absents, lambda zeros: zeros.to(less))


def parameter_dtypes(config: PretrainedConfig, dtype: Dtype) -> dict[str, torch.dtype]:
    """The type of every parameter, tied ones under all their names, and of every buffer of a model in `dtype`."""
    return _parameter_dtypes(ConfigKey(config), dtype)


@lru_cache(maxsize=16)
def _parameter_dtypes(key: ConfigKey, dtype: Dtype) -> dict[str, torch.dtype]:
    """Once for a model: while it is built, torch's default type is another, for all threads."""
    skeleton = build_skeleton(key.config, dtype)
    patterns = [own.replace("*", ".*") for own in skeleton._get_dtype_plan(TORCH_DTYPES[dtype])]
    kept = re.compile("|".join(patterns) or "(?!)")
    made: list[tuple[str, Tensor]] = [
        *skeleton.named_parameters(remove_duplicate=False),
        *skeleton.named_buffers(),
    ]
    return {name: torch.float32 if kept.search(name) else tensor.dtype for name, tensor in made}
