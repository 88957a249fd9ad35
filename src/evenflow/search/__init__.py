"""Proposes, simulates and ranks plans, and reads a plan back into its program and timeline."""

from evenflow.program import plan_program
from evenflow.search.auto import AutoSchedule, make_auto
from evenflow.search.candidate import Candidate, equal_split, try_split
from evenflow.search.hardware import plan_work
from evenflow.search.order_bound import order_bound_s
from evenflow.search.planner import check_request, make_plan
from evenflow.search.problem import Problem, Split
from evenflow.search.replay import Compared, compare_schedules, order_gap, plan_timeline, reschedule
from evenflow.search.what_if import each_faster, find_out, were_faster, were_on_time

__all__ = [
    "AutoSchedule",
    "Candidate",
    "Compared",
    "Problem",
    "Split",
    "check_request",
    "compare_schedules",
    "each_faster",
    "equal_split",
    "find_out",
    "make_auto",
    "make_plan",
    "order_bound_s",
    "order_gap",
    "plan_program",
    "plan_timeline",
    "plan_work",
    "reschedule",
    "try_split",
    "were_faster",
    "were_on_time",
]
