"""A process that loads its stage of a large model holds little more than that stage."""

from __future__ import annotations

import pytest

from benchmarks.loading import measure


@pytest.mark.soak
def test_loading_a_gibibyte_over_four_processes_takes_each_its_share() -> None:
    result = measure()
    assert result["model_bytes"] > 0.95 * 2**30
    assert len(result["ranks"]) == 4
    for own in result["ranks"]:
        assert own["peak_bytes"] >= own["share_bytes"]
        assert own["over_share"] <= 1.15
