"""Why: the papers say in closed form what their schedules cost and hold; what we simulate has to come to the same.

Everywhere: p ranks, m microbatches, v stages on each rank, all stages equal; F, B, I, W are seconds of a whole rank
(of its v stages together); transfers, norm and update are free. A rank's idle is its step less m (F + B).
"""

from __future__ import annotations

import pytest

from evenflow.cost import StageCost, StageMemory
from evenflow.program import (
    Backward,
    Forward,
    InputBackward,
    WeightBackward,
    compute_order,
    default_stage_rank,
    lower,
    place,
)
from evenflow.simulate import simulate
from tests.property.cases import hardware_of

COMPUTE = (Forward, Backward, InputBackward, WeightBackward)
GRID = [(p, m) for p in (1, 2, 3, 4, 7) for m in (1, 2, 3, 4, 8, 20)]
SECONDS = [(1.0, 1.0), (1.0, 2.0), (3.0, 1.0), (0.2, 0.5)]
# W is no longer than F and I: then it fits into the time in which a rank waits for what F and I make elsewhere.
HALVES = [(1.0, 1.0, 1.0), (1.0, 1.0, 0.5), (2.0, 2.0, 1.0), (1.0, 1.2, 0.8), (1.0, 2.0, 1.0), (2.0, 1.0, 1.0)]


def _simulated(schedule, ranks, m, forward_s, input_s, weight_s, memory=None):
    program = lower(compute_order(schedule, ranks, m), ranks, m)
    v = len(ranks) // (max(ranks) + 1)
    cost = StageCost(forward_s / v, (input_s + weight_s) / v, input_s / v, weight_s / v)
    more = {"memory": [memory] * len(ranks)} if memory else {}
    return simulate(program, hardware_of(program, [cost] * len(ranks), **more))


def _spans(timeline):
    """For each rank, the seconds from its own first compute action's start to its own last one's end."""
    found = []
    for own in timeline.ranks:
        events = [event for event in own.events if isinstance(event.action, COMPUTE)]
        found.append(events[-1].end_s - events[0].start_s)
    return found


@pytest.mark.parametrize(("forward_s", "backward_s"), SECONDS)
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize(("p", "m"), GRID)
def test_1f1b_and_gpipe(schedule, p, m, forward_s, backward_s):
    """Idle as a fraction of ranks x step: (p-1)/(m+p-1) (Huang et al. 2019, section 2.3)."""
    timeline = _simulated(schedule, tuple(range(p)), m, forward_s, backward_s / 2, backward_s / 2)
    assert timeline.step_s == pytest.approx((m + p - 1) * (forward_s + backward_s))
    assert timeline.idle_fraction == pytest.approx((p - 1) / (m + p - 1))
    assert timeline.imbalance == pytest.approx(1.0)


@pytest.mark.parametrize(("forward_s", "backward_s"), SECONDS)
@pytest.mark.parametrize("v", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", ["interleaved", "gpipe"])
@pytest.mark.parametrize("p", [2, 3, 4, 6])
def test_several_stages_a_rank_divide_the_bubble_by_their_number(schedule, p, v, forward_s, backward_s):
    """Bubble over ideal time: (p-1)/(v m), where p divides m (Narayanan et al. 2021, section 2.2).

    GPipe through one stage after another, breadth first, has the same (Lamy-Poirier 2023, section 4.1).
    """
    for m in (p, 2 * p, 5 * p):
        ideal = m * (forward_s + backward_s)
        timeline = _simulated(schedule, place("loop", p, v * p), m, forward_s, backward_s / 2, backward_s / 2)
        assert timeline.step_s / ideal - 1 == pytest.approx((p - 1) / (v * m))
        assert all(own.idle_s == pytest.approx((p - 1) * (forward_s + backward_s) / v) for own in timeline.ranks)


@pytest.mark.parametrize(("forward_s", "input_s", "weight_s"), HALVES)
@pytest.mark.parametrize("p", [1, 2, 3, 4, 6])
def test_zb_h1(p, forward_s, input_s, weight_s):
    """Bubble (p-1)(F + I - W), a third of 1F1B's (p-1)(F + I + W) where all are equal (Qi et al. 2023, table 2)."""
    for m in (p, 2 * p - 1, 2 * p, 5 * p):
        timeline = _simulated("zb-h1", tuple(range(p)), m, forward_s, input_s, weight_s)
        bubble = (p - 1) * (forward_s + input_s - weight_s)
        assert [own.idle_s for own in timeline.ranks] == pytest.approx([bubble] * p)
        if forward_s == input_s == weight_s:
            whole = _simulated("1f1b", tuple(range(p)), m, forward_s, input_s, weight_s)
            assert timeline.ranks[0].idle_s == pytest.approx(whole.ranks[0].idle_s / 3)


@pytest.mark.parametrize(("forward_s", "input_s", "weight_s"), HALVES)
@pytest.mark.parametrize("p", [1, 2, 3, 4, 6])
def test_zb_h2(p, forward_s, input_s, weight_s):
    """Bubble (p-1)(F + I - 2W), none where all are equal; from a rank's own first action to its last (table 2).

    The paper's optimizer lets steps overlap at their ends. Ours meets for the norm: where all are equal, what one
    rank begins later than another it also ends later, and the step is as long as ZB-H1's.
    """
    for m in (2 * p - 1, 2 * p, 5 * p):
        timeline = _simulated("zb-h2", tuple(range(p)), m, forward_s, input_s, weight_s)
        bubble = max(_spans(timeline)) - m * (forward_s + input_s + weight_s)
        assert bubble == pytest.approx((p - 1) * (forward_s + input_s - 2 * weight_s), abs=1e-9)
        if forward_s == input_s == weight_s:
            other = _simulated("zb-h1", tuple(range(p)), m, forward_s, input_s, weight_s)
            assert timeline.step_s == pytest.approx(other.step_s)


@pytest.mark.parametrize("schedule", ["zb-h2", "zb-v"])
@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 8])
def test_no_rank_idles_between_its_own_first_and_last_action(schedule, p):
    """ZB-H2 and ZB-V with F = I = W, from m = 2p - 1 on; not before."""
    ranks = default_stage_rank(schedule, p)
    for m in (2 * p - 1, 2 * p, 5 * p):
        assert _spans(_simulated(schedule, ranks, m, 1.0, 1.0, 1.0)) == pytest.approx([3.0 * m] * p)
    if p > 1:
        m = 2 * p - 2
        assert max(_spans(_simulated(schedule, ranks, m, 1.0, 1.0, 1.0))) > 3.0 * m + 0.4


@pytest.mark.parametrize("p", [2, 3, 4])
def test_schedules_that_are_searched_for_are_no_worse_than_those_drawn(p):
    """ZB-1p holds what ZB-H1 holds, ZB-2p what ZB-H2 holds; both are made for the shortest span."""
    for searched, drawn in (("zb-1p", "zb-h1"), ("zb-2p", "zb-h2")):
        for m in (p, 2 * p - 1, 3 * p):
            ours, papers = (_simulated(name, tuple(range(p)), m, 1.0, 1.0, 1.0) for name in (searched, drawn))
            assert max(_spans(ours)) <= max(_spans(papers)) + 1e-9


def _peaks(schedule, ranks, m):
    """For each rank, the most activations it holds, in microbatches of a whole rank; between I and W half is left."""
    v = len(ranks) // (max(ranks) + 1)
    memory = StageMemory(0, 0, 2, 1, 0, 0, 0, 0)
    timeline = _simulated(schedule, ranks, m, 1.0, 1.0, 1.0, memory)
    return [own.peak_bytes / (2 * v) for own in timeline.ranks]


@pytest.mark.parametrize(("p", "m"), GRID)
def test_activations_of_one_stage_a_rank(p, m):
    """1F1B's stage s holds p - s microbatches, GPipe's all m; ZB-H1's at most p, ZB-H2's at most 2p - 1."""
    one = tuple(range(p))
    assert _peaks("1f1b", one, m) == [min(p - s, m) for s in range(p)]
    assert _peaks("gpipe", one, m) == [m] * p
    assert max(_peaks("zb-h1", one, m)) == min(p, m)
    assert max(_peaks("zb-h2", one, m)) == min(2 * p - 1, m)


@pytest.mark.parametrize("v", [1, 2, 3, 4])
@pytest.mark.parametrize("p", [2, 3, 4, 6])
def test_activations_of_interleaved(p, v):
    """Rank 0 holds 1F1B's p times 1 + (p-1)/(p v) (Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.3)."""
    for m in (2 * p, 5 * p):
        peaks = _peaks("interleaved", place("loop", p, v * p), m)
        assert peaks[0] == pytest.approx(p * (1 + (p - 1) / (p * v)))
        assert max(peaks) == peaks[0]


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_activations_under_a_cap(p):
    """ZB-V and ZB-1p hold at most p, ZB-2p at most 2p."""
    for m in (1, p, 2 * p - 1, 3 * p + 1):
        assert max(_peaks("zb-v", place("v", p, 2 * p), m)) <= p
        for ranks in (tuple(range(p)), place("loop", p, 2 * p), place("v", p, 2 * p)):
            assert max(_peaks("zb-1p", ranks, m)) <= p
            assert max(_peaks("zb-2p", ranks, m)) <= 2 * p
    assert max(_peaks("zb-v", place("v", p, 2 * p), 3 * p + 1)) > p - 1
