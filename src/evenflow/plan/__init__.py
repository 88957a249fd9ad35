"""The plan as a value, the exact partition, and the bound it is held against."""

from evenflow.plan.bound import step_bound
from evenflow.plan.partition import StageCaps, least_needs, partition
from evenflow.plan.plan import Axes, Bound, LayerPlan, Plan, Posting, Prediction, RankPlan, Search, StagePlan

__all__ = [
    "Axes",
    "Bound",
    "LayerPlan",
    "Plan",
    "Posting",
    "Prediction",
    "RankPlan",
    "Search",
    "StageCaps",
    "StagePlan",
    "least_needs",
    "partition",
    "step_bound",
]
