"""Random cases, each from its number or by hypothesis: CI tries some of them, and `make parity` many."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import settings


def sweep(every_one: range, each: int) -> pytest.MarkDecorator:
    """Parametrize a test's `seeds`: each so many-th in CI, all of them in the full grid."""
    return pytest.mark.parametrize(
        "seeds", [every_one[::each], pytest.param(every_one, marks=pytest.mark.full)], ids=["some", "all"]
    )


def some_of(seeds: Iterable[int], *in_ci: int) -> pytest.MarkDecorator:
    """Parametrize a test's `seed`: each is a case of its own; those of `in_ci` in CI, all of them in the full grid."""
    cases = [seed if seed in in_ci else pytest.param(seed, marks=pytest.mark.full) for seed in seeds]
    return pytest.mark.parametrize("seed", cases)


def examples(some: int, many: int, **others: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """How many examples hypothesis tries: `some` in CI, `many` where `make parity` runs the same test again.

    Others of hypothesis' settings may be given.
    """
    number = many if os.environ.get("EVENFLOW_TESTS_MANY") else some

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        return pytest.mark.many(settings(deadline=None, max_examples=number, **others)(test))

    return decorate
