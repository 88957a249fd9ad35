"""The plan as a value, the exact partition, and the bound it is held against."""

from evenflow.plan.axes import ZEROS, Axes, Coordinates, Zero, check_zero, choose_axes
from evenflow.plan.bound import step_bound
from evenflow.plan.partition import StageCaps, least_needs, partition
from evenflow.plan.plan import Bound, LayerPlan, Plan, Posting, Prediction, RankPlan, Search, StagePlan, tied_stages

__all__ = [
    "ZEROS",
    "Axes",
    "Bound",
    "Coordinates",
    "LayerPlan",
    "Plan",
    "Posting",
    "Prediction",
    "RankPlan",
    "Search",
    "StageCaps",
    "StagePlan",
    "Zero",
    "check_zero",
    "choose_axes",
    "least_needs",
    "partition",
    "step_bound",
    "tied_stages",
]
