"""The type that weights, activations and messages have while training; gradients and the optimizer's state are fp32."""

from __future__ import annotations

from typing import Literal, get_args

from evenflow.errors import InputError

Dtype = Literal["fp32", "bf16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
DEFAULT_DTYPE: Dtype = "fp32"
DTYPE_BYTES: dict[Dtype, int] = {"fp32": 4, "bf16": 2}
GRADIENT_BYTES = DTYPE_BYTES["fp32"]  # of each parameter's gradient, moments and master weight, whatever its own type


def check_dtype(value: str) -> Dtype:
    """A word of the user's as the value that it is.

    Raises:
        InputError: there is no such type.
    """
    for known in DTYPES:
        if value == known:
            return known
    raise InputError(f"--dtype {value!r} is not known; {' or '.join(DTYPES)} would do")
