"""The best layout of a preset over a cluster: the space, a bound of each point, and a best-first search with proof."""

from evenflow.search.layouts.layout import Layout, Pins, Space
from evenflow.search.layouts.planned import LayoutRequest, plan_layout

__all__ = ["Layout", "LayoutRequest", "Pins", "Space", "plan_layout"]
