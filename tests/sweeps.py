"""Sweeps over random cases, each from its number: CI runs some of them, and the full grid (`make parity`) all."""

from __future__ import annotations

import pytest


def sweep(every_one: range, each: int) -> pytest.MarkDecorator:
    """Parametrize a test's `seeds`: each so many-th in CI, all of them in the full grid."""
    return pytest.mark.parametrize(
        "seeds", [every_one[::each], pytest.param(every_one, marks=pytest.mark.full)], ids=["some", "all"]
    )
