"""Seconds and bytes of every layer and transfer, and where each figure comes from."""

from evenflow.cost.analytic import analytic_costs
from evenflow.cost.collectives import all_reduce_s, combined_s, spread_s
from evenflow.cost.costs import TIMED_PARTS, Costs, LayerCost, Origin
from evenflow.cost.links import Edge, LinkCost, Links, Network, rank_links
from evenflow.cost.memory import MESSAGE_BYTES, HasLayers, MemoryModel, StageMemory, state_with_experts
from evenflow.cost.profile import Profile, Rehearsal
from evenflow.cost.stage import RankCost, StageCost, at_speeds, rank_costs, stage_costs

__all__ = [
    "MESSAGE_BYTES",
    "TIMED_PARTS",
    "Costs",
    "Edge",
    "HasLayers",
    "LayerCost",
    "LinkCost",
    "Links",
    "MemoryModel",
    "Network",
    "Origin",
    "Profile",
    "RankCost",
    "Rehearsal",
    "StageCost",
    "StageMemory",
    "all_reduce_s",
    "analytic_costs",
    "at_speeds",
    "combined_s",
    "rank_costs",
    "rank_links",
    "spread_s",
    "stage_costs",
    "state_with_experts",
]
