"""Why: closed forms must come to what can be worked out by hand, and move the way that layouts move."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.layer_times import DATA, compare
from evenflow.cost.pinned import (
    Pinned,
    block_seconds,
    peak_bytes,
    pending_bytes,
    rank_bytes,
    step_seconds,
    worst_rank,
)
from evenflow.cost.roofline import Roofline
from evenflow.spec.accelerators import ACCELERATORS
from evenflow.spec.architecture import Architecture

GPT = Architecture("gpt", "test", 16, 4096, 16384, 32, 32, 128, 51200, gated=False, biased=True, tied=True)
JOB = Pinned(
    GPT, ACCELERATORS["A100-80GB"], tp=2, pp=4, dp=2, cp=1, ep=1, vpp=1, order="1f1b", micro_batch=1, global_batch=64,
    seq=2048, redone="none", zero=1, is_eighth=False, is_flash=False, is_sequence_parallel=True,
)  # fmt: skip


def test_activations_are_those_of_the_paper():
    # Korthikanti et al. 2022, section 4: s b h (34 + 5 a s / h) / t bytes of a layer, less its two dropouts' masks
    it = JOB.architecture
    tokens, scores = 2048 * 4096, 5 * 32 * 2048 / 4096
    held = rank_bytes(JOB, 0).activations
    assert held == pytest.approx(4 * 4 * tokens * (34 + scores) / 2, rel=0.1)
    assert rank_bytes(replace(JOB, redone="attention"), 0).activations < held / 2
    assert it.layers == sum(holding.blocks for holding in JOB.holdings())


def test_what_waits_for_weight_gradients_is_that_of_the_paper():
    # Qi et al. 2023, table 1: 32 s b h bytes of a layer; what recomputing leaves is then not what a rank holds
    alone = replace(JOB, tp=1, is_sequence_parallel=False)
    assert pending_bytes(alone) == 32 * 2048 * 4096
    late = replace(alone, order="zb-1p", redone="full")
    assert rank_bytes(late, 3).activations > 3 * 4 * pending_bytes(alone)
    assert rank_bytes(replace(late, order="1f1b"), 3).activations < 4 * pending_bytes(alone)


def test_logits_are_let_go_of_before_a_block_is_computed_again():
    job = replace(JOB, redone="full", architecture=replace(GPT, vocab=256000))
    assert rank_bytes(job, 3).activations < rank_bytes(job, 0).activations / 2


def test_exchanges_of_later_ranks_are_over_while_the_first_goes_back():
    def exchanged(job: Pinned) -> float:
        alone = replace(job, dp=1, global_batch=job.global_batch // job.dp)
        return step_seconds(job, Roofline()) - step_seconds(alone, Roofline())

    # of 3, 4, 4 and 3 blocks the first 3 are waited for
    few = replace(GPT, layers=14, vocab=512)
    apart = replace(JOB, zero=0, is_overlapped=False, architecture=few)
    three = replace(apart, pp=1, architecture=replace(few, layers=3))
    assert exchanged(apart) == pytest.approx(exchanged(three), rel=0.05)
    assert exchanged(replace(apart, is_overlapped=True)) < 0.1 * exchanged(apart)


def test_the_first_rank_holds_most_and_zero_shares_out():
    assert worst_rank(JOB) == 0
    by_level = [rank_bytes(replace(JOB, zero=zero), 0) for zero in range(4)]
    parameters = JOB.dense_parameters(JOB.holdings()[0])
    assert [own.optimizer for own in by_level] == pytest.approx([12 * parameters] + [6 * parameters] * 3)
    assert by_level[2].gradients == pytest.approx(by_level[1].gradients / 2)
    assert by_level[3].parameters == pytest.approx(by_level[2].parameters / 2)
    assert rank_bytes(JOB, 0).reserved > rank_bytes(JOB, 0).allocated
    assert peak_bytes(JOB) == max(rank_bytes(JOB, rank).allocated for rank in range(4))


def test_blocks_that_do_not_divide_are_fewer_at_the_ends():
    assert [own.blocks for own in replace(JOB, architecture=replace(GPT, layers=14)).holdings()] == [3, 4, 4, 3]


def test_schedules_stand_in_the_order_of_their_bubbles():
    steps = {
        order: step_seconds(replace(JOB, order=order, vpp=vpp), Roofline())
        for order, vpp in (("1f1b", 1), ("interleaved-1f1b", 4), ("zb-1p", 1), ("zb-2p", 1))
    }
    assert steps["zb-2p"] < steps["zb-1p"] < steps["1f1b"]
    assert steps["interleaved-1f1b"] < steps["1f1b"]


def test_a_backward_is_longer_by_what_it_computes_again():
    plain, again = (block_seconds(replace(JOB, redone=redone), Roofline()) for redone in ("none", "full"))
    assert again.backward_s == pytest.approx(plain.backward_s + plain.forward_s)
    assert plain.weight_s < plain.forward_s


def test_published_layer_times_are_predicted_without_fitting():
    import csv

    with DATA.open(newline="") as file:
        found = compare(list(csv.DictReader(file)), Roofline())
    assert len(found) == 5
    assert all(abs(error) < 0.1 for one in found for error in (one.forward_error, one.backward_error))
