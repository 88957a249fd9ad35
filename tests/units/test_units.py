"""Why: people copy sizes from what we print into what we read, so both must agree and nonsense be refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.errors import EvenflowError, FaultError, ImpossibleError, InputError, ProgramError, StoppedError
from evenflow.units import (
    format_bytes,
    format_count,
    format_flops,
    format_percent,
    format_seconds,
    parse_bytes,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("4096", 4096),
        ("512B", 512),
        ("70GiB", 70 * 2**30),
        ("70 gib", 70 * 2**30),
        (" 1.5GiB ", 3 * 2**29),
        ("512 MiB", 512 * 2**20),
        ("80GB", 80 * 10**9),
        ("2kb", 2000),
        ("0.5KiB", 512),
        ("3TB", 3 * 10**12),
        ("1TiB", 2**40),
    ],
)
def test_sizes_are_read(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GiB",
        "-1GiB",
        "0",
        "0.4",
        "0GiB",
        "1e9",
        "70 G",
        "70GiBs",
        "1,5GiB",
        "nan",
        "inf",
        "1.GiB",
        ".5GiB",
    ],
)
def test_what_is_no_size_is_refused_with_what_is(text):
    with pytest.raises(InputError, match="is not a memory size; 70GiB, 512MiB or a number of bytes would be") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


@given(st.integers(min_value=1, max_value=2**50))
@settings(deadline=None, max_examples=300)
def test_what_is_printed_reads_back_within_what_three_digits_hold(count):
    assert abs(parse_bytes(format_bytes(count)) - count) <= 0.005 * count + 1


@given(st.integers(min_value=1, max_value=2**50))
@settings(deadline=None, max_examples=100)
def test_plain_numbers_are_exact(count):
    assert parse_bytes(str(count)) == count


@given(st.integers(min_value=2**20, max_value=2**50))
@settings(deadline=None, max_examples=300)
def test_half_a_percent_more_reads_back_as_enough(count):
    """What the planner does where it suggests a limit."""
    assert parse_bytes(format_bytes(count * 1.005)) >= count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1556925645, "1.45 GiB"),
        (70 * 2**30, "70.0 GiB"),
        (2**40, "1024 GiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_bytes_are_printed_in_binary_units(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (4.2e-6, "4.20 µs"),
        (0.0123, "12.3 ms"),
        (0.5, "500 ms"),
        (4.56, "4.56 s"),
        (119.0, "119 s"),
        (200, "3 min 20 s"),
        (7199.7, "2 h 0 min"),
        (-0.0123, "-12.3 ms"),
    ],
)
def test_seconds_are_printed_in_a_fitting_unit(seconds, text):
    assert format_seconds(seconds) == text


def test_counts_flops_and_percentages():
    assert [format_count(own) for own in (0, 999, 1000, 18_200_000, 70.6e9, 175e9)] == [
        "0",
        "999",
        "1 k",
        "18.2 M",
        "70.6 G",
        "175 G",
    ]
    assert format_flops(3.21e12) == "3.21 TFLOP"
    assert format_flops(0) == "0 FLOP"
    assert format_percent(0.1234) == "12.3%"


def test_each_error_has_the_exit_code_that_scripts_rely_on():
    codes = {InputError: 2, ProgramError: 2, FaultError: 3, ImpossibleError: 4}
    for error, code in codes.items():
        assert issubclass(error, EvenflowError)
        assert error("text").exit_code == code
        assert str(error("text")) == "text"
    assert StoppedError("saved", 2).exit_code == 130
    assert StoppedError("saved", 15).exit_code == 143
    assert str(StoppedError("saved", 15)) == "saved"
