"""Runs one rank of a plan alone, with made-up peers: its real time and memory, whatever the plan's size."""

from evenflow.rehearse.rehearsal import (
    DEFAULT_STEPS,
    Rehearsed,
    check_model,
    check_rank,
    distinct_ranks,
    held_otherwise,
    rehearse_rank,
)
from evenflow.rehearse.whole import predicted_compute_s, rehearsed_plan, rehearsed_profile

__all__ = [
    "DEFAULT_STEPS",
    "Rehearsed",
    "check_model",
    "check_rank",
    "distinct_ranks",
    "held_otherwise",
    "predicted_compute_s",
    "rehearse_rank",
    "rehearsed_plan",
    "rehearsed_profile",
]
