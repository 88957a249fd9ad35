"""One unit for a whole column, so that its figures can be compared by their length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import floor, log10

# From which figure on a unit is used, its size, its name.
_SECONDS = ((10.0, 1.0, "s"), (1e-3, 1e-3, "ms"), (0.0, 1e-6, "µs"))
_BYTES = tuple((size, size, unit) for size, unit in ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")))
_COUNTS = tuple(
    (size, size, unit)
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
)


@dataclass(frozen=True, slots=True)
class Scale:
    """A unit, its size, and the digits after the point that give the largest figure three digits."""

    size: float
    unit: str
    digits: int

    def text(self, value: float) -> str:
        """A figure in this unit, without the unit."""
        return f"{value / self.size:.{self.digits}f}"

    def full(self, value: float) -> str:
        """A figure with its unit."""
        return f"{self.text(value)} {self.unit}".rstrip()


def seconds_scale(values: Iterable[float]) -> Scale:
    """The unit for a column of seconds; seconds themselves from ten up, so that small parts keep digits."""
    return _fitting(values, _SECONDS)


def bytes_scale(values: Iterable[float]) -> Scale:
    """The unit for a column of bytes."""
    return _fitting(values, _BYTES)


def count_scale(values: Iterable[float]) -> Scale:
    """The thousands letter for a column of counts."""
    return _fitting(values, _COUNTS)


def _fitting(values: Iterable[float], units: tuple[tuple[float, float, str], ...]) -> Scale:
    """The first unit whose least figure, which each entry begins with, the largest value reaches."""
    largest = max((abs(value) for value in values), default=0.0)
    _, size, unit = next((entry for entry in units if largest >= entry[0]), units[-1])
    digits = 0 if largest / size >= 100 else 1 if largest / size >= 10 else 2
    return Scale(size, unit, 0 if unit in ("B", "") else digits)


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not under `least`: an axis counts in it."""
    power = 10.0 ** floor(log10(least)) if least > 0 else 1.0
    return next((factor * power for factor in (1, 2, 5) if factor * power >= least), 10 * power)
