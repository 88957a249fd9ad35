"""Why: every plan starts from the partition, so it has to be exact, and brute force says what exact is."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from evenflow.errors import InputError
from evenflow.plan import StageCaps, least_needs, partition
from tests.property.cases import all_splits


def linear_caps(fixed_bytes, flight_bytes, passing_bytes, in_flight, cap_bytes):
    """Caps of stages that need `fixed + in flight x flight + the most passing` of their layers."""
    layers, stages = len(fixed_bytes), len(in_flight)
    needs = np.zeros((stages, layers + 1, layers + 1))
    for stage in range(stages):
        for first in range(layers):
            for end in range(first + 1, layers + 1):
                needs[stage, first, end] = (
                    sum(fixed_bytes[first:end])
                    + in_flight[stage] * sum(flight_bytes[first:end])
                    + max(passing_bytes[first:end])
                )
    return StageCaps(needs, cap_bytes)


def _stage_seconds(seconds, split):
    return [sum(seconds[layer] for layer in layers) for layers in split]


def _best(seconds, stages, caps=None):
    """Least bottleneck, then least sum of squares, over every split that stays under the caps."""
    figures = []
    for split in all_splits(len(seconds), stages):
        if caps and any(
            caps.needs_bytes[stage, layers[0], layers[-1] + 1] > caps.cap_bytes[stage]
            for stage, layers in enumerate(split)
        ):
            continue
        own = _stage_seconds(seconds, split)
        figures.append((max(own), sum(time**2 for time in own)))
    if not figures:
        return None
    bottleneck = min(figure[0] for figure in figures)
    return bottleneck, min(squares for most, squares in figures if most <= bottleneck * (1 + 1e-9))


def _assert_is_best(seconds, stages, caps=None):
    expected = _best(seconds, stages, caps)
    split = partition(seconds, stages, caps)
    if expected is None:
        assert split is None
        return
    assert split is not None
    assert len(split) == stages
    assert [layer for layers in split for layer in layers] == list(range(len(seconds)))
    own = _stage_seconds(seconds, split)
    assert max(own) == pytest.approx(expected[0], rel=1e-9)
    assert sum(time**2 for time in own) == pytest.approx(expected[1], rel=1e-9)


@pytest.mark.parametrize("seed", range(150))
def test_is_exact_on_uneven_layers(seed):
    random = Random(seed)
    layers = random.randint(1, 10)
    seconds = [random.uniform(0.0, 5.0) for _ in range(layers)]
    _assert_is_best(seconds, random.randint(1, layers))


@pytest.mark.parametrize("seed", range(150))
def test_is_exact_where_many_splits_tie(seed):
    """Whole numbers tie often, so the tie-break decides."""
    random = Random(1000 + seed)
    layers = random.randint(2, 11)
    seconds = [random.randint(1, 3) for _ in range(layers)]
    _assert_is_best(seconds, random.randint(1, layers))


def test_is_exact_on_layers_whose_sums_differ_only_in_their_last_bits():
    """Ten times 0.1 is not 1.0 in floats: equal layers must tie all the same."""
    for seconds in (0.1, 0.7, 1 / 3):
        for stages in range(1, 10):
            _assert_is_best([seconds] * 11, stages)


def test_a_tie_that_only_floats_break_is_a_tie():
    """Sums of tenths differ in their last bits by where they begin: that must not decide between splits."""
    _assert_is_best([0.4, 0.4, 0.4, 0.1, 0.4, 0.8, 0.7, 0.6], 4)
    for seed in range(300):
        random = Random(3000 + seed)
        layers = random.randint(4, 8)
        _assert_is_best([random.randint(1, 9) / 10 for _ in range(layers)], random.randint(2, layers - 1))


def test_is_exact_under_caps():
    feasible = 0
    for seed in range(200):
        random = Random(2000 + seed)
        layers = random.randint(2, 9)
        stages = random.randint(1, layers)
        seconds = [random.uniform(0.1, 5.0) for _ in range(layers)]
        caps = linear_caps(
            fixed_bytes=[random.randint(0, 50) for _ in range(layers)],
            flight_bytes=[random.randint(0, 20) for _ in range(layers)],
            passing_bytes=[random.randint(0, 60) for _ in range(layers)],
            in_flight=[stages - stage for stage in range(stages)],
            cap_bytes=[random.randint(60, 400) for _ in range(stages)],
        )
        _assert_is_best(seconds, stages, caps)
        feasible += partition(seconds, stages, caps) is not None
    assert 20 < feasible < 180, "both outcomes have to be met for this test to say anything"


def test_a_cap_that_is_met_exactly_is_met():
    caps = linear_caps([3, 4], [1, 1], [2, 5], in_flight=[2, 1], cap_bytes=[7, 10])
    assert [caps.needs_bytes[0, 0, 1], caps.needs_bytes[1, 1, 2], caps.needs_bytes[0, 0, 2]] == [7, 10, 16]
    assert partition([1.0, 1.0], 2, caps) == ((0,), (1,))
    assert partition([1.0, 1.0], 2, linear_caps([3, 4], [1, 1], [2, 5], [2, 1], [6, 10])) is None


def test_where_nothing_fits_the_least_needy_split_is_the_closest():
    for seed in range(100):
        random = Random(4000 + seed)
        layers = random.randint(2, 8)
        stages = random.randint(1, layers)
        caps = linear_caps(
            fixed_bytes=[random.randint(0, 50) for _ in range(layers)],
            flight_bytes=[random.randint(0, 20) for _ in range(layers)],
            passing_bytes=[random.randint(0, 60) for _ in range(layers)],
            in_flight=[stages - stage for stage in range(stages)],
            cap_bytes=[1] * stages,
        )

        def most(split, needs=caps.needs_bytes):
            return max(needs[stage, run[0], run[-1] + 1] for stage, run in enumerate(split))

        assert most(least_needs(caps)) == min(most(split) for split in all_splits(layers, stages))


def test_a_cap_moves_layers_off_the_stage_that_has_more_in_flight():
    seconds = [1.0] * 6
    free = linear_caps([0] * 6, [10] * 6, [0] * 6, in_flight=[3, 2, 1], cap_bytes=[1000] * 3)
    tight = linear_caps([0] * 6, [10] * 6, [0] * 6, in_flight=[3, 2, 1], cap_bytes=[40] * 3)
    assert partition(seconds, 3, free) == ((0, 1), (2, 3), (4, 5))
    assert partition(seconds, 3, tight) == ((0,), (1, 2), (3, 4, 5))


def test_ten_equal_layers_over_two_devices_are_cut_in_the_middle():
    assert partition([1.0] * 10, 2) == (tuple(range(5)), tuple(range(5, 10)))


def test_a_heavy_head_gets_fewer_blocks():
    split = partition([1.0] * 9 + [4.0], 2)
    assert split is not None
    assert split == (tuple(range(7)), (7, 8, 9)) or split == (tuple(range(6)), (6, 7, 8, 9))
    assert max(_stage_seconds([1.0] * 9 + [4.0], split)) == 7.0


def test_ten_equal_layers_over_four_stages_leave_no_stage_with_one():
    split = partition([1.0] * 10, 4)
    assert split is not None
    assert sorted(len(layers) for layers in split) == [2, 2, 3, 3]


def test_layers_that_cost_nothing_are_no_trouble():
    split = partition([0.0] * 4, 3)
    assert split is not None
    assert [layer for layers in split for layer in layers] == [0, 1, 2, 3]


@pytest.mark.parametrize("stages", [0, -1, 5])
def test_a_number_of_stages_that_cannot_be_names_the_numbers(stages):
    with pytest.raises(InputError, match=rf"4 layers do not make {stages} stages; 1 to 4 would do"):
        partition([1.0] * 4, stages)


def test_a_large_model_over_many_stages():
    random = Random(7)
    seconds = [random.uniform(0.5, 1.5) for _ in range(130)]
    split = partition(seconds, 64)
    assert split is not None
    assert len(split) == 64
    own = _stage_seconds(seconds, split)
    # Greedy filling under a limit needs at most 64 stages at our bottleneck, and more just below it.
    assert _greedy_stages(seconds, max(own) * (1 + 1e-9)) <= 64
    assert _greedy_stages(seconds, max(own) * (1 - 1e-6)) > 64


def _greedy_stages(seconds, limit):
    count, held = 1, 0.0
    for own in seconds:
        if held + own > limit:
            count, held = count + 1, 0.0
        held += own
    return count
