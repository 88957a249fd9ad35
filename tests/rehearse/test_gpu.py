"""On a GPU (`make gpu`): ranks of plans for hundreds of devices, rehearsed on this one, beside what the plans say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evenflow.models import preset_source
from evenflow.plan import Axes
from evenflow.rehearse import check_model, predicted_compute_s, rehearse_rank
from evenflow.spec.cluster import parse_cluster
from evenflow.train import make_batch, plan_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here, or not run by `make gpu`"),
]
CASES = [
    ("gpt3-175b", Axes(pp=16, tp=8, dp=1), 2048),
    ("llama-3.1-70b", Axes(pp=8, tp=8, dp=1), 4096),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "axes", "seq"), CASES)
def test_two_ranks_of_a_large_plan(name: str, axes: Axes, seq: int) -> None:
    """Sizes hold within 10%; times only have to be there, as a plan's for another device says nothing of this one."""
    source = preset_source(name)
    cluster = parse_cluster(f"{axes.processes // 8}x8xH100-80GB")
    cluster = replace(cluster, device=replace(cluster.device, memory_bytes=2**40))  # what fits is not asked here
    batch = make_batch(2 * axes.pp, 1, seq, axes)
    _, plan, _ = plan_model(source, cluster, batch, axes=axes, dtype="bf16")
    model = check_model(plan, source)
    for rank in (0, 1):
        found = rehearse_rank(plan, source, model, rank, steps=3)
        peak, planned_s = plan.ranks[rank].peak_bytes, predicted_compute_s(plan, model, rank)
        print(
            f"{name} rank {rank} of {axes.pp}, tp {axes.tp}, on {torch.cuda.get_device_name()}: compute "
            f"{found.compute_s:.3f} s (planned {planned_s:.3f} s for {plan.device}), peak "
            f"{found.peak_bytes / 2**30:.2f} GiB (planned {peak / 2**30:.2f} GiB)"
        )
        assert found.compute_s > 0
        assert abs(found.peak_bytes / peak - 1) <= 0.1
