"""Proposes, simulates and ranks plans, and reads a plan back into its program and timeline."""

from evenflow.search.candidate import Candidate, Split, equal_split, try_split
from evenflow.search.planner import check_request, make_plan
from evenflow.search.replay import plan_program, plan_timeline

__all__ = [
    "Candidate",
    "Split",
    "check_request",
    "equal_split",
    "make_plan",
    "plan_program",
    "plan_timeline",
    "try_split",
]
