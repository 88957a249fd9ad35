"""Learning rates, held against transformers' schedulers where it has the same ones."""

from __future__ import annotations

import pytest
import torch
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup, get_wsd_schedule

from evenflow.train.lr_schedule import LrKind, LrSchedule


def scheduled(make: object, steps: int, peak: float) -> list[float]:
    """What a scheduler of transformers gives after each step; its step 0 is before ours."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = make(optimizer)  # type: ignore[operator]
    rates = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_a_cosine_is_that_of_transformers() -> None:
    expected = scheduled(lambda own: get_cosine_with_min_lr_schedule_with_warmup(own, 7, 50, min_lr_rate=0.1), 50, 0.02)
    found = [LrSchedule(50, 0.02, "cosine", warm_up=7).at(step) for step in range(1, 51)]
    assert found == pytest.approx(expected)


def test_a_plateau_is_that_of_transformers() -> None:
    def make(optimizer: torch.optim.Optimizer) -> object:
        return get_wsd_schedule(optimizer, 5, 10, num_stable_steps=25, min_lr_ratio=0.2, decay_type="linear")

    found = [LrSchedule(40, 1.0, "wsd", warm_up=5, decay=10, end=0.2).at(step) for step in range(1, 41)]
    assert found[4:] == pytest.approx(scheduled(make, 40, 1.0)[4:])  # its warm-up does not begin at zero


def test_a_line_ends_at_its_end() -> None:
    schedule = LrSchedule(10, 2.0, "linear", warm_up=0, end=0.0)
    assert [schedule.at(step) for step in (1, 5, 10)] == pytest.approx([1.8, 1.0, 0.0])


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 9, 100, 5000])
def test_rates_rise_to_the_peak_and_never_again(kind: LrKind, steps: int) -> None:
    rates = [LrSchedule(steps, 1.0, kind).at(step) for step in range(1, steps + 1)]
    top = rates.index(max(rates))
    assert rates[top] == 1.0
    assert top == min(max(steps // 10, 1), 100) - 1
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(1.0 if steps == 1 else 0.1)
