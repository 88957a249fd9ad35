"""Bytes, seconds, counts and FLOPs as people read and write them (GiB = 2^30; files keep plain numbers)."""

from __future__ import annotations

import re

from evenflow.errors import InputError

_BYTE_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_MOST_BYTES = 2**60
_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Read `70GiB`, `512 MiB`, `80GB` or a plain number of bytes.

    Raises:
        InputError: the text is not a size, or not above zero.
    """
    match = _BYTES.fullmatch(text)
    unit = _BYTE_UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or not 1 <= float(match[1]) * unit <= _MOST_BYTES:
        raise InputError(f"{text[:40]!r} is not a memory size; 70GiB, 512MiB or a number of bytes would be")
    return int(float(match[1]) * unit)


def format_bytes(count: float) -> str:
    """Bytes with three significant digits in binary units: `1.45 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{_three_digits(count)} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def format_seconds(seconds: float) -> str:
    """Seconds with three significant digits and a fitting unit: `12.3 ms`, `4.56 s`, `3 min 20 s`."""
    size = abs(seconds)
    if size == 0:
        return "0 s"
    if size < 1e-3:
        return f"{_three_digits(seconds * 1e6)} µs"
    if size < 1:
        return f"{_three_digits(seconds * 1e3)} ms"
    if size < 120:
        return f"{_three_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def format_count(count: float) -> str:
    """A count with a thousands letter: `18.2 M`, `70.6 G`."""
    return _scaled(count, ("", " k", " M", " G", " T", " P", " E"))


def format_flops(flops: float) -> str:
    """Floating-point operations: `3.21 TFLOP`."""
    return _scaled(flops, (" FLOP", " kFLOP", " MFLOP", " GFLOP", " TFLOP", " PFLOP", " EFLOP"))


def format_percent(fraction: float) -> str:
    """A fraction as a percentage: `12.3%`."""
    return f"{fraction * 100:.1f}%"


def _scaled(value: float, suffixes: tuple[str, ...]) -> str:
    for suffix in suffixes[:-1]:
        if abs(value) < 1000:
            return f"{value:.0f}{suffix}" if value == int(value) else f"{_three_digits(value)}{suffix}"
        value /= 1000
    return f"{_three_digits(value)}{suffixes[-1]}"


def _three_digits(value: float) -> str:
    size = abs(value)
    return f"{value:.2f}" if size < 10 else f"{value:.1f}" if size < 100 else f"{value:.0f}"
