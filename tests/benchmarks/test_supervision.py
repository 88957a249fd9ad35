"""The supervision benchmark adds its parts up; it asserts no speed."""

from __future__ import annotations

import pytest

from benchmarks.supervision import measure


def test_the_overhead_is_the_sum_of_its_parts() -> None:
    found = measure(microbatches=2, microbatch_s=0.001, beat_s=0.002, rounds=15)
    for name in ("median", "low", "high"):
        parts = [found[part][name] for part in ("beats", "notes", "watch")]
        assert found["overhead"][name] == pytest.approx(sum(parts))
    assert 0 < found["notes"]["median"] < 0.1
    assert 0 < found["watch"]["median"] < 0.1
    assert found["beats"]["low"] <= found["beats"]["median"] <= found["beats"]["high"]
